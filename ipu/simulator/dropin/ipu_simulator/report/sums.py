"""The verdict summed up: who is busiest, where cycles go, how full the fullest IPU is."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Callable, Hashable

from .verdict import EXPECTED_TIME_ERROR, IpuMemory, StageTime, Verdict, Work

# Phases that run in every pipeline cycle; the rest runs once in a weight update.
CYCLE_PHASES = ("forward", "recompute", "backward")


@dataclass(frozen=True)
class Share:
    """A part of the cycles of one pipeline cycle: of all IPUs together, and of the busiest one."""

    name: str
    cycles: float
    of_all: float
    of_busiest: float


@dataclass(frozen=True)
class CostlyOp:
    """Operations of one name in modules that differ in nothing but their numbers."""

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


def busy_s(stage: StageTime) -> float:
    return stage.forward_s + stage.recompute_s + stage.backward_s + stage.stash_s + stage.copies_s


def busy_s_of_ipus(verdict: Verdict) -> dict[int, float]:
    """Seconds that each IPU is busy in a pipeline cycle of the main phase."""
    busy = {memory.ipu: 0.0 for memory in verdict.ipus}
    for stage in verdict.details.stages:
        busy[stage.ipu] = busy.get(stage.ipu, 0.0) + busy_s(stage)
    return busy


def busiest_ipu(verdict: Verdict) -> int:
    busy = busy_s_of_ipus(verdict)
    return max(busy, key=lambda ipu: busy[ipu], default=0)


def step_name(verdict: Verdict) -> str:
    """What step_s is the time of: a weight update, or where nothing is trained a call of the model."""
    return "weight update" if any(stage.backward_s for stage in verdict.details.stages) else "call"


def cycle_name(verdict: Verdict) -> str:
    """What cycle_s is the time of."""
    return "pipeline cycle" if verdict.pipeline.pipelined else "micro batch"


def samples_per_step(verdict: Verdict) -> int:
    """Samples in one weight update or call."""
    return round(verdict.samples_per_s * verdict.step_s)


def by_kind(verdict: Verdict) -> list[Share]:
    return _shares(verdict, lambda work: work.kind)


def by_module(verdict: Verdict) -> list[Share]:
    """Repeated layers are summed: "encoder.layers.3.attention" counts as "encoder.layers.*.attention"."""
    return _shares(verdict, lambda work: without_numbers(work.module))


def costliest(verdict: Verdict, most: int) -> list[CostlyOp]:
    """The `most` dearest operations of a pipeline cycle, repeated layers summed."""
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


def expected_error(verdict: Verdict) -> float | None:
    """Mean relative error of times of published rows that were left out of the fit, where it is known."""
    for assumption in verdict.details.assumptions:
        if assumption.name == EXPECTED_TIME_ERROR:
            return assumption.value
    return None


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
