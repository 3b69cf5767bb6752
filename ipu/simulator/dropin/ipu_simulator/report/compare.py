"""Two verdicts side by side: a Markdown table, a page, and whether the second one is worse.

Reads verdict.json as `report.write` wrote it, so it needs no model, no torch and no machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..cost.verdict import COMPONENTS, IpuMemory
from . import sums

# A larger share than this of memory or of a step's time is a change for the worse, unless the user says.
WORSE_BY = 0.01
_WRITERS = "--dry-run or --profile"

Outcome = Literal["better", "worse", "equal", ""]


class NoVerdict(ValueError):
    """A file that isn't a verdict."""


@dataclass(frozen=True)
class Summary:
    """The parts of a verdict.json that are compared. Times are in seconds, infinite if it has null."""

    name: str
    fits: bool
    ipus: tuple[IpuMemory, ...]
    forward_stages: int
    cycles: int
    cycle_s: float
    step_s: float
    update_s: float
    host_s: float
    samples_per_s: float
    tokens_per_s: float
    utilisation: float
    time_to_train_s: float
    parameters: int

    @property
    def fullest(self) -> IpuMemory:
        return max(self.ipus, key=lambda memory: memory.filled)

    @property
    def samples_per_step(self) -> float:
        return self.step_s * self.samples_per_s


def read(path: Path) -> Summary:
    """The verdict in a file, or in a folder's verdict.json. Raises NoVerdict, OSError."""
    path = path / "verdict.json" if path.is_dir() else path
    if not path.exists():
        raise NoVerdict(f"No such file: {path}; name a verdict.json that {_WRITERS} wrote, or its folder")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NoVerdict(f"{path} is not JSON ({error}): name a verdict.json that {_WRITERS} wrote") from None
    try:
        return _summary(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise NoVerdict(
            f"{path} is not a verdict: {what}; name a verdict.json that {_WRITERS} wrote"
        ) from None


def _summary(found: Any) -> Summary:
    if not isinstance(found, dict):
        raise TypeError("it is not a JSON object")
    known = {entry.name for entry in fields(IpuMemory)}
    ipus = tuple(
        IpuMemory(**{key: value for key, value in entry.items() if key in known}) for entry in found["ipus"]
    )
    if not ipus:
        raise TypeError("it has no IPU")
    pipeline = found["pipeline"]
    return Summary(
        name=f"{found['config']} on {found['target']}",
        fits=bool(found["fits"]),
        ipus=ipus,
        forward_stages=int(pipeline["forward_stages"]),
        cycles=int(pipeline["pipeline_cycles_per_update"]),
        cycle_s=_number(pipeline["cycle_s"]),
        parameters=int(found["parameters"]),
        **{name: _number(found[name]) for name in _NUMBERS},
    )


_NUMBERS = (
    "step_s",
    "update_s",
    "host_s",
    "samples_per_s",
    "tokens_per_s",
    "utilisation",
    "time_to_train_s",
)


def _number(value: Any) -> float:
    return math.inf if value is None else float(value)


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity in both verdicts, and its relative change; None if it has none."""

    name: str
    before: str
    after: str
    change: float | None
    outcome: Outcome

    @property
    def change_text(self) -> str:
        if self.change is None:
            return ""
        shown = "new" if math.isinf(self.change) else f"{self.change:+.1%}"
        return "+0.0%" if shown == "-0.0%" else shown


@dataclass(frozen=True)
class Comparison:
    """Two verdicts, with the quantities of `worse` that grew by more than the share `worse_by`."""

    before: Summary
    after: Summary
    worse_by: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows if row.outcome == "worse")


def compared(before: Summary, after: Summary, worse_by: float = WORSE_BY) -> Comparison:
    """Compares two verdicts.

    Worse is: a program that no longer fits, and memory of an IPU (its peak, its fullest tile) or the time of
    a step that is more than `worse_by` (0.05: 5%) above the first verdict's. Everything else is shown only.
    """
    rows = [
        Row(
            "fits",
            _yes(before.fits),
            _yes(after.fits),
            None,
            "" if before.fits == after.fits else "better" if after.fits else "worse",
        )
    ]

    def add(name: str, one: float, other: float, shown: Callable[[float], str], judged: bool = False) -> None:
        change = _change(one, other)
        outcome: Outcome = ""
        if judged and abs(change) > worse_by:
            outcome = "worse" if change > 0 else "better"
        rows.append(Row(name, shown(one), shown(other), change, outcome))

    add("step time", before.step_s, after.step_s, sums.human_seconds, judged=True)
    add("pipeline cycle", before.cycle_s, after.cycle_s, sums.human_seconds)
    add("cycles per step", before.cycles, after.cycles, _whole)
    add("update", before.update_s, after.update_s, sums.human_seconds)
    add("host", before.host_s, after.host_s, sums.human_seconds)
    add("samples per step", before.samples_per_step, after.samples_per_step, _whole)
    add("samples/s", before.samples_per_s, after.samples_per_s, sums.human_rate)
    if before.tokens_per_s or after.tokens_per_s:  # not of a program whose samples have no tokens
        add("tokens/s", before.tokens_per_s, after.tokens_per_s, sums.human_rate)
    add("utilisation", before.utilisation, after.utilisation, sums.percent)
    if before.time_to_train_s or after.time_to_train_s:  # not of a program without a number of steps
        add("time to train", before.time_to_train_s, after.time_to_train_s, sums.human_seconds)
    add("parameters", before.parameters, after.parameters, sums.human_count)
    same_ipus = len(before.ipus) == len(after.ipus)
    pairs = zip(before.ipus, after.ipus, strict=True) if same_ipus else [(before.fullest, after.fullest)]
    for one, other in pairs:
        ipu = f"IPU {one.ipu}" if same_ipus else "fullest IPU"
        add(f"{ipu} peak", one.peak_bytes, other.peak_bytes, sums.human_bytes, judged=True)
        add(
            f"{ipu} fullest tile",
            one.fullest_tile_bytes,
            other.fullest_tile_bytes,
            sums.human_bytes,
            judged=True,
        )
        add(f"{ipu} always live", one.always_live_bytes, other.always_live_bytes, sums.human_bytes)
        for name in COMPONENTS:
            sizes = one.components.get(name, 0), other.components.get(name, 0)
            if sizes[0] != sizes[1]:
                add(f"{ipu} {name.replace('_', ' ')} at the peak", *sizes, sums.human_bytes)
    return Comparison(before, after, worse_by, tuple(rows), tuple(_notes(before, after)))


def _notes(before: Summary, after: Summary) -> list[str]:
    notes = []
    if not math.isclose(before.samples_per_step, after.samples_per_step, rel_tol=1e-6):
        notes.append("The steps have different numbers of samples: compare samples/s, not the step time.")
    if len(before.ipus) != len(after.ipus):
        notes.append(
            f"{len(before.ipus)} IPUs per replica against {len(after.ipus)}: only the fullest IPUs are "
            "compared."
        )
    return notes


def _change(before: float, after: float) -> float:
    if before == after:
        return 0.0
    if not before or math.isinf(after):
        return math.inf
    return after / before - 1 if math.isfinite(before) else -1.0


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "unknown"


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table, with its notes and its outcome."""
    heads = ("", "A", "B", "change", "")
    cells = [heads, *((r.name, r.before, r.after, r.change_text, r.outcome) for r in comparison.rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(heads))]
    lines = [_line(heads, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    lines += [_line(row, widths) for row in cells[1:]]
    named = f"A: {comparison.before.name}\n\nB: {comparison.after.name}\n"
    return "\n".join([named, *lines, "", *comparison.notes, outcome(comparison)])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in row]
    return "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(escaped, widths, strict=True)) + " |"


def outcome(comparison: Comparison) -> str:
    """One sentence: what is worse in B, if anything."""
    share = f"{comparison.worse_by:.2%}".replace(".00%", "%")
    if comparison.worse:
        return f"B is worse by more than {share} in: {', '.join(comparison.worse)}"
    return f"B is not worse by more than {share} in memory or step time"


def component_pairs(comparison: Comparison) -> list[tuple[str, Mapping[str, int], Mapping[str, int]]]:
    """(IPU, components at the peak in A, in B) for the page; the fullest ones if their numbers differ."""
    before, after = comparison.before, comparison.after
    if len(before.ipus) != len(after.ipus):
        return [("fullest IPU", before.fullest.components, after.fullest.components)]
    return [
        (f"IPU {one.ipu}", one.components, other.components)
        for one, other in zip(before.ipus, after.ipus, strict=True)
    ]
