"""report.html: the verdict as one file, without network access, and complete without its script."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import markupsafe

from ..cost.verdict import COMPONENTS, IpuMemory, LivenessPoint, Verdict
from . import sums
from . import sums as units
from .compare import Comparison, component_pairs, outcome
from .hints import Hints
from .schedule import PARTS, Schedule, Slice, schedule_of
from .sums import busy_s_of_ipus, human_bytes, human_seconds, percent

# Charts contain no text: labels are HTML beside them, so that they keep their size on a phone.

# Widths and positions in charts are in thousandths of the chart's width.
WIDTH = 1000.0
# Columns of a liveness chart: more would be narrower than a pixel.
_MOST_COLUMNS = 360
# Width of the drawn weight update in pipeline cycles, at most.
_UPDATE_CYCLES = 4


@dataclass(frozen=True)
class Segment:
    """A coloured segment of a row; `name` is its class in the style sheet, `title` its tooltip."""

    x: float
    width: float
    name: str
    title: str


def segment(start: float, size: float, whole: float, name: str, title: str) -> Segment:
    """A segment of length `size` at `start`, both in the unit in which the chart is `whole` wide."""
    return Segment(_rounded(start / whole * WIDTH), _rounded(size / whole * WIDTH), name, title)


@dataclass(frozen=True)
class MemoryBar:
    """One IPU's memory: peak, and always live.

    :param usable_x: position at which the fullest tile is full (tiles are unevenly filled).
    :param capacity_x: position of the IPU's SRAM capacity.
    """

    memory: IpuMemory
    peak: tuple[Segment, ...]
    always_live: tuple[Segment, ...]
    usable_x: float
    capacity_x: float


@dataclass(frozen=True)
class TileBar:
    """The memory of a tile of one IPU at the peak: of the mean one by component, and of the fullest one."""

    memory: IpuMemory
    mean_bytes: int
    mean: tuple[Segment, ...]
    fullest: tuple[Segment, ...]
    capacity_x: float


def tile_bars(verdict: Verdict) -> list[TileBar]:
    """One bar per IPU, all to the same scale."""
    bars = []
    most = max(max(memory.tile_capacity_bytes, memory.fullest_tile_bytes) for memory in verdict.ipus)
    for memory in verdict.ipus:
        tiles = memory.capacity_bytes / memory.tile_capacity_bytes
        mean = [(name, round(memory.components.get(name, 0) / tiles)) for name in COMPONENTS]
        fullest = [(name, memory.fullest_tile_components.get(name, 0)) for name in COMPONENTS]
        bars.append(
            TileBar(
                memory,
                round(memory.peak_bytes / tiles),
                _stacked(mean, most),
                _stacked(fullest, most),
                _rounded(memory.tile_capacity_bytes / most * WIDTH),
            )
        )
    return bars


@dataclass(frozen=True)
class LivenessChart:
    """Live bytes of an IPU over a step. Heights are in thousandths of the highest value drawn.

    :param outline: SVG path of the area, from bottom left to bottom right.
    :param phases: the phase of each section.
    :param peak: the highest point.
    :param operations: number of points before downsampling.
    :param columns: one transparent segment per column, with the hint of its highest point.
    """

    ipu: int
    outline: str
    phases: tuple[Segment, ...]
    usable_y: float
    peak: LivenessPoint
    peak_x: float
    peak_y: float
    operations: int
    columns: tuple[Segment, ...]


@dataclass(frozen=True)
class CycleRow:
    """An IPU's work in a pipeline cycle of the main phase."""

    ipu: int
    segments: tuple[Segment, ...]
    busy: float
    busy_s: float


@dataclass(frozen=True)
class StepRow:
    """An IPU's work in a weight update, as far as it is drawn."""

    ipu: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class StepChart:
    """The whole weight update: pipeline cycles that are drawn, the gap, the update (not to scale)."""

    rows: tuple[StepRow, ...]
    phases: tuple[Segment, ...]
    gap_x: float | None
    omitted: int


def memory_bars(verdict: Verdict) -> list[MemoryBar]:
    """One bar per IPU, all to the same scale."""
    most = max(max(memory.capacity_bytes, memory.peak_bytes) for memory in verdict.ipus)
    hints = Hints(verdict)

    def stacked(memory: IpuMemory, sizes: Mapping[str, int], when: str) -> tuple[Segment, ...]:
        def hint(name: str, size: int) -> str:
            return hints.component(memory.ipu, name, size, when)

        return _stacked([(name, sizes.get(name, 0)) for name in COMPONENTS], most, hint)

    return [
        MemoryBar(
            memory,
            stacked(memory, memory.components, "at the peak"),
            stacked(memory, memory.always_live_components, "always"),
            _rounded(memory.usable_bytes / most * WIDTH),
            _rounded(memory.capacity_bytes / most * WIDTH),
        )
        for memory in verdict.ipus
    ]


def _plain_hint(name: str, size: int) -> str:
    return f"{name.replace('_', ' ')}: {human_bytes(size)}"


def _stacked(
    parts: Sequence[tuple[str, int]], most: float, hint: Callable[[str, int], str] = _plain_hint
) -> tuple[Segment, ...]:
    segments, start = [], 0
    for name, size in parts:
        if size > 0:
            segments.append(segment(start, size, most, name, hint(name, size)))
        start += size
    return tuple(segments)


def liveness_charts(verdict: Verdict) -> list[LivenessChart]:
    """One chart per IPU that has points, all to the same scale."""
    points: dict[int, list[LivenessPoint]] = {}
    for point in verdict.details.liveness:
        points.setdefault(point.ipu, []).append(point)
    usable = {memory.ipu: memory.usable_bytes for memory in verdict.ipus}
    most = max(
        [point.live_bytes for point in verdict.details.liveness] + [*usable.values()],
        default=1,
    )
    hints = Hints(verdict)
    return [_liveness_chart(points[ipu], usable[ipu], most, hints) for ipu in sorted(points)]


def _liveness_chart(
    points: Sequence[LivenessPoint], usable_bytes: int, most: int, hints: Hints
) -> LivenessChart:
    columns = min(_MOST_COLUMNS, len(points))
    bounds = [column * len(points) // columns for column in range(columns + 1)]
    # Each column shows its maximum, so that no peak is lost.
    highest = [
        max(points[start:end], key=lambda point: point.live_bytes)
        for start, end in itertools.pairwise(bounds)
    ]
    width = WIDTH / columns
    path = ["M0,1000"]
    for column, point in enumerate(highest):
        path.append(f"V{_height(point.live_bytes, most)}H{_rounded((column + 1) * width)}")
    peak = max(points, key=lambda point: point.live_bytes)
    return LivenessChart(
        peak.ipu,
        "".join(path) + "V1000Z",
        _phases([point.phase for point in highest]),
        _height(usable_bytes, most),
        peak,
        _rounded((highest.index(peak) + 0.5) * width),
        _height(peak.live_bytes, most),
        len(points),
        tuple(
            segment(column, 1, columns, "point", hints.point(point)) for column, point in enumerate(highest)
        ),
    )


def _phases(phases: Sequence[str]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    start = 0
    for position in range(1, len(phases) + 1):
        if position == len(phases) or phases[position] != phases[start]:
            segments.append(segment(start, position - start, len(phases), phases[start], phases[start]))
            start = position
    return tuple(segments)


def cycle_rows(verdict: Verdict) -> list[CycleRow]:
    """A pipeline cycle in which every stage is busy, as wide as the chart."""
    plan = schedule_of(verdict)
    busy_s = busy_s_of_ipus(verdict)
    cycle_s = max([verdict.pipeline.cycle_s, *busy_s.values()])
    by_cycle: dict[int, list[Slice]] = {cycle.index: [] for cycle in plan.cycles}
    for slice_ in plan.slices:
        by_cycle[slice_.cycle].append(slice_)
    cycle = max(plan.cycles, key=lambda cycle: len(by_cycle[cycle.index]))
    slices = by_cycle[cycle.index]
    hints = Hints(verdict)
    return [
        CycleRow(
            ipu,
            tuple(
                _work(slice_, slice_.start_s - cycle.start_s, cycle_s, hints)
                for slice_ in slices
                if slice_.ipu == ipu
            ),
            seconds / cycle_s if cycle_s else 0.0,
            seconds,
        )
        for ipu, seconds in sorted(busy_s.items())
    ]


def step_chart(verdict: Verdict) -> StepChart:
    """Fill, main phase, flush, weight update."""
    plan, hints = schedule_of(verdict), Hints(verdict)
    cycles_end_s = plan.cycles_end_s
    after_s = plan.end_s - cycles_end_s
    update_s = min(after_s, _UPDATE_CYCLES * verdict.pipeline.cycle_s)
    span_s = cycles_end_s + update_s
    update: list[Segment] = []
    if after_s:
        name = "update" if verdict.update_s else "host"
        update = [segment(cycles_end_s, update_s, span_s, "update", f"{name}: {human_seconds(after_s)}")]
    rows = [
        StepRow(
            memory.ipu,
            (
                *(
                    _work(slice_, slice_.start_s, span_s, hints)
                    for slice_ in plan.slices
                    if slice_.ipu == memory.ipu
                ),
                *update,
            ),
        )
        for memory in verdict.ipus
    ]
    labels = [replace(each, title=each.title.partition(":")[0]) for each in update]
    gap_x = None if plan.gap_s is None else _rounded(plan.gap_s / span_s * WIDTH)
    return StepChart(tuple(rows), (*_cycle_phases(plan, span_s), *labels), gap_x, plan.omitted)


def _cycle_phases(plan: Schedule, span_s: float) -> list[Segment]:
    starts = [cycle for cycle in plan.cycles if cycle.index == 0 or cycle.start_s == plan.gap_s]
    starts += [
        cycle
        for before, cycle in itertools.pairwise(plan.cycles)
        if before.phase != cycle.phase and cycle not in starts
    ]
    starts.sort(key=lambda cycle: cycle.index)
    ends_s = [cycle.start_s for cycle in starts[1:]] + [plan.cycles_end_s]
    return [
        segment(cycle.start_s, end_s - cycle.start_s, span_s, cycle.phase, cycle.phase)
        for cycle, end_s in zip(starts, ends_s, strict=True)
    ]


def _work(slice_: Slice, start_s: float, span_s: float, hints: Hints) -> Segment:
    assert slice_.part in PARTS
    return segment(start_s, slice_.duration_s, span_s, slice_.part, hints.slice(slice_))


def step_parts(verdict: Verdict) -> list[Segment]:
    """A weight update to scale: all pipeline cycles, the update's parts, the host."""
    pipeline = verdict.pipeline
    cycles = "pipeline cycles" if pipeline.pipelined else "micro batches"
    parts = [(cycles, "forward", pipeline.cycles_s)]
    parts += [(name, "update", seconds) for name, seconds in verdict.details.update_parts_s.items()]
    parts.append(("host", "copies", verdict.host_s))
    total_s = sum(seconds for *_, seconds in parts) or 1.0
    segments, start_s = [], 0.0
    for name, colour, seconds in parts:
        if seconds > 0:
            title = f"{name.replace('_', ' ')}: {human_seconds(seconds)}, {percent(seconds / total_s)}"
            segments.append(segment(start_s, seconds, total_s, colour, title))
        start_s += seconds
    return segments


def _height(size: float, most: float) -> float:
    """SVG's y axis points down."""
    return _rounded(1000 * (1 - size / most))


def _rounded(value: float) -> float:
    return round(value, 2)


_TEMPLATES = Path(__file__).resolve().parent / "templates"
_MODULES_SHOWN = 16
_OPS_SHOWN = 1000
_BUFFERS_SHOWN = 12

# Meaning of each origin, for the table of assumptions.
ORIGINS = {
    "published": "by the manufacturer or by the authors of a measurement",
    "derived": "computed from published facts",
    "fitted": "to published results of whole runs",
    "assumed": "an estimate: there is no published value",
    "measured": "by us",
}


def html(verdict: Verdict) -> str:
    """The whole page. User-supplied text (names of modules, of configurations) is escaped."""
    modules = sums.by_module(verdict)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            verdict=verdict,
            details=verdict.details,
            components=COMPONENTS,
            origins=ORIGINS,
            fullest=sums.fullest(verdict),
            near_edge=sums.near_edge(verdict) if verdict.near_edge else "",
            samples=sums.samples_per_step(verdict),
            cycle_name=sums.cycle_name(verdict),
            step_name=sums.step_name(verdict),
            expected_error=verdict.details.expected_time_error,
            busiest=sums.busiest_ipu(verdict),
            kinds=sums.by_kind(verdict),
            modules=modules[:_MODULES_SHOWN],
            other_modules=modules[_MODULES_SHOWN:],
            buffers_shown=_BUFFERS_SHOWN,
            ops=sums.costliest(verdict, _OPS_SHOWN),
            memory_bars=memory_bars(verdict),
            liveness=liveness_charts(verdict),
            cycle_rows=cycle_rows(verdict),
            step=step_chart(verdict),
            step_parts=step_parts(verdict),
            tile_bars=tile_bars(verdict),
            script=markupsafe.Markup(_script()),
            script_hash=_hash(_script()),
        )
    )


@dataclass(frozen=True)
class PairOfBars:
    """An IPU's memory at the peak in two verdicts."""

    name: str
    before: tuple[Segment, ...]
    before_bytes: int
    after: tuple[Segment, ...]
    after_bytes: int


def comparison_html(comparison: Comparison) -> str:
    """The page that lays two verdicts side by side."""
    pairs = component_pairs(comparison)
    most = max([1, *(sum(sizes.values()) for _, *both in pairs for sizes in both)])

    def stacked(sizes: Mapping[str, int]) -> tuple[Segment, ...]:
        return _stacked([(name, sizes.get(name, 0)) for name in COMPONENTS], most)

    bars = [
        PairOfBars(name, stacked(one), sum(one.values()), stacked(other), sum(other.values()))
        for name, one, other in pairs
    ]
    template = _environment().get_template("compare.html.jinja")
    return template.render(
        before=comparison.before,
        after=comparison.after,
        worse=comparison.worse,
        outcome=outcome(comparison),
        notes=comparison.notes,
        rows=comparison.rows,
        components=COMPONENTS,
        bars=bars,
    )


def _script() -> str:
    return (_TEMPLATES / "report.js").read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The script's hash as a Content Security Policy names it: no other script runs."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=units.human_bytes,
        seconds=units.human_seconds,
        count=units.human_count,
        flop=units.human_flop,
        rate=units.human_rate,
        percent=units.percent,
        number=units.plain_number,
        spoken=lambda name: name.replace("_", " "),
        path=lambda module: _breakable(module, "."),
        flags=sums.flags,
        words=lambda name: _breakable(name, "_"),
    )
    return environment


def _breakable(text: str, separator: str) -> markupsafe.Markup:
    """Text with an optional line break after every separator."""
    return markupsafe.escape(text).replace(separator, markupsafe.Markup(f"{separator}<wbr>"))
