"""Summaries of a verdict (busiest IPU, costliest modules, fullest IPU), and numbers formatted for people.

Byte units are binary: an IPU has 897 MiB of SRAM.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Callable, Hashable

from ..cost.verdict import CODE_BAND, IpuMemory, StageTime, Verdict, Work

# Phases that run in every pipeline cycle; the others run once per weight update.
CYCLE_PHASES = ("forward", "recompute", "backward")


@dataclass(frozen=True)
class Share:
    """A share of the cycles of one pipeline cycle: of all IPUs together, and of the busiest one."""

    name: str
    cycles: float
    of_all: float
    of_busiest: float


@dataclass(frozen=True)
class CostlyOp:
    """Operations of one name, summed over modules whose paths differ only in numbers."""

    op: str
    kind: str
    module: str
    phase: str
    count: int
    cycles: float
    of_all: float
    flops: int


def fullest(verdict: Verdict) -> IpuMemory:
    """The IPU with the least headroom."""
    return max(verdict.ipus, key=lambda memory: memory.filled)


def near_edge(verdict: Verdict) -> str:
    """Of a verdict near the edge: between which fill levels it lies, and why."""
    low, high = (max(memory.filled_band[end] for memory in verdict.ipus) for end in (0, 1))
    answer = "it may not fit" if verdict.fits else "it may fit"
    return (
        f"near the edge: {percent(low)} to {percent(high)} with {CODE_BAND:.0%} less or more of the assumed "
        f"code, so {answer}"
    )


def busy_s(stage: StageTime) -> float:
    return stage.forward_s + stage.recompute_s + stage.backward_s + stage.stash_s + stage.copies_s


def busy_s_of_ipus(verdict: Verdict) -> dict[int, float]:
    """Busy seconds of each IPU in a pipeline cycle of the main phase."""
    busy = {memory.ipu: 0.0 for memory in verdict.ipus}
    for stage in verdict.details.stages:
        busy[stage.ipu] = busy.get(stage.ipu, 0.0) + busy_s(stage)
    return busy


def busiest_ipu(verdict: Verdict) -> int:
    busy = busy_s_of_ipus(verdict)
    return max(busy, key=lambda ipu: busy[ipu], default=0)


def step_name(verdict: Verdict) -> str:
    """The unit that step_s measures: a weight update, or in inference a call of the model."""
    return "weight update" if any(stage.backward_s for stage in verdict.details.stages) else "call"


def cycle_name(verdict: Verdict) -> str:
    """The unit that cycle_s measures."""
    return "pipeline cycle" if verdict.pipeline.pipelined else "micro batch"


def samples_per_step(verdict: Verdict) -> int:
    """Samples in one weight update or call."""
    return round(verdict.samples_per_s * verdict.step_s)


def by_kind(verdict: Verdict) -> list[Share]:
    return _shares(verdict, lambda work: work.kind)


def by_module(verdict: Verdict) -> list[Share]:
    """Shares by module; repeated layers are summed ("encoder.layers.*.attention")."""
    return _shares(verdict, lambda work: without_numbers(work.module))


def costliest(verdict: Verdict, most: int) -> list[CostlyOp]:
    """The `most` costliest operations of a pipeline cycle, repeated layers summed."""
    groups: dict[tuple[str, str, str, str], list[Work]] = defaultdict(list)
    total = 0.0
    for work in _of_cycle(verdict):
        groups[work.op, work.kind, without_numbers(work.module), work.phase].append(work)
        total += work.cycles
    ops = [
        CostlyOp(
            op,
            kind,
            module,
            phase,
            count=sum(work.count for work in group),
            cycles=sum(work.cycles for work in group),
            of_all=sum(work.cycles for work in group) / total if total else 0.0,
            flops=sum(work.flops for work in group),
        )
        for (op, kind, module, phase), group in groups.items()
    ]
    return sorted(ops, key=lambda op: -op.cycles)[:most]


def flags(change: str) -> list[str]:
    """A remedy's flags, each with its values."""
    return re.split(" (?=--)", change)


def without_numbers(module: str) -> str:
    """ "encoder.layers.3.attention" -> "encoder.layers.*.attention"; "(no module)" for an empty path."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module) or "(no module)"


def _of_cycle(verdict: Verdict) -> list[Work]:
    return [work for work in verdict.details.work if work.phase in CYCLE_PHASES]


def _shares(verdict: Verdict, name_of: Callable[[Work], Hashable]) -> list[Share]:
    busiest = busiest_ipu(verdict)
    cycles: dict[str, float] = defaultdict(float)
    busiest_cycles: dict[str, float] = defaultdict(float)
    for work in _of_cycle(verdict):
        name = str(name_of(work))
        cycles[name] += work.cycles
        if work.ipu == busiest:
            busiest_cycles[name] += work.cycles
    total, busiest_total = sum(cycles.values()), sum(busiest_cycles.values())
    shares = [
        Share(
            name,
            value,
            value / total if total else 0.0,
            busiest_cycles[name] / busiest_total if busiest_total else 0.0,
        )
        for name, value in cycles.items()
    ]
    return sorted(shares, key=lambda share: -share.cycles)


_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COUNT_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def human_bytes(count: float) -> str:
    """ "897.0 MiB"; whole bytes below 1 KiB. Never "1024.0 MiB"."""
    size, unit = abs(float(count)), 0
    while round(size, 1) >= 1024 and unit < len(_BYTE_UNITS) - 1:
        size /= 1024
        unit += 1
    sign = "-" if count < 0 else ""
    return f"{sign}{size:.0f} B" if unit == 0 else f"{sign}{size:.1f} {_BYTE_UNITS[unit]}"


def human_seconds(seconds: float) -> str:
    """ "6.11 ms", "2.165 s", "1 h 05 min", "3 d 04 h": two units from one minute up."""
    if math.isinf(seconds) or math.isnan(seconds):
        return "never" if seconds > 0 else "unknown"
    if seconds < 0:
        return f"-{human_seconds(-seconds)}"
    if seconds == 0:
        return "0 s"
    if seconds < 999.5e-6:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 999.5e-3:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"
    if seconds < 3599.5:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60:02d} s"
    if seconds < 86400 - 30:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24:,} d {hours % 24:02d} h"


def human_count(value: float) -> str:
    """ "336.2 M": three to four digits and a decimal prefix."""
    for factor, prefix in _COUNT_UNITS:
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.1f} {prefix}"
    return f"{value:.3g}"


def human_flop(value: float) -> str:
    """ "108.8 GFLOP", "256 FLOP"."""
    count = human_count(value)
    return f"{count}FLOP" if count[-1].isalpha() else f"{count} FLOP"


def human_rate(value: float) -> str:
    """A rate per second: "5,179", "12.3", "0.84"."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def percent(fraction: float) -> str:
    """ "93.4%"."""
    return f"{fraction:.1%}"


def plain_number(value: float) -> str:
    """A value in the table of assumptions: "1.088", "638,976", "2.2e+09"."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}"
