"""The work of every IPU in each pipeline cycle of a weight update, for drawing.

With F forward stages and N = G + 2F - 2 pipeline cycles for G micro batches, forward stage s computes
micro batch c - s in cycle c and its backward pass computes micro batch c - (2F - 2 - s); the last stage does
both at once. In the first 2F - 2 cycles the pipeline fills, in the last 2F - 2 it empties. Every cycle lasts
as long as the busiest IPU with the stages that are busy then. Without backward passes (inference) there are
N = G + F - 1 cycles. Without a pipeline, N = G: within a cycle, the stages run one after another, forward and
backward.

An update may have thousands of identical cycles: a schedule keeps the first and the last of them and the
number of those left out. Times are the verdict's predictions.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Callable, Sequence

from ..cost.pipeline import StageWork, busy_in, cycle_s, full_cycle
from ..cost.verdict import StageTime, Verdict

# Cycles of the main phase drawn before and after those left out.
_MAIN_CYCLES_DRAWN = 2

# The part after the pipeline in which IPUs are idle.
HOST = "host input and output"

PARTS = ("forward", "recompute", "backward", "stash", "copies")


@dataclass(frozen=True)
class Slice:
    """One IPU's work of one kind. Times are seconds from the start of the drawing, without omitted cycles.

    :param part: one of PARTS.
    :param micro_batch: micro batch within the weight update, from 0; -1 for stashing and copying, which
        serve several at once.
    """

    ipu: int
    stage: int
    part: str
    cycle: int
    micro_batch: int
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class Cycle:
    """A drawn pipeline cycle. `phase` is fill, main or flush."""

    index: int
    phase: str
    start_s: float


@dataclass(frozen=True)
class Part:
    """A part of the step after its pipeline cycles."""

    name: str
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class Schedule:
    """The drawing: cycles in order, their slices, the gap, and the parts after the pipeline.

    :param gap_s: position of the cycles left out: the start of the cycle after them; None if all are drawn.
    :param omitted: number of cycles left out.
    :param after: optimiser, collectives and so on, in order, then host input and output.
    """

    cycles: tuple[Cycle, ...]
    slices: tuple[Slice, ...]
    gap_s: float | None
    omitted: int
    cycles_end_s: float
    after: tuple[Part, ...]

    @property
    def end_s(self) -> float:
        return self.cycles_end_s + sum(part.duration_s for part in self.after)


def schedule_of(verdict: Verdict) -> Schedule:
    """The drawing of one weight update."""
    stages = sorted(verdict.details.stages, key=lambda stage: stage.stage)
    pipeline = verdict.pipeline
    total = pipeline.pipeline_cycles_per_update
    micro_batches = pipeline.micro_batches
    depth = total - micro_batches
    drawn = _drawn_cycles(total, depth)

    cycles: list[Cycle] = []
    slices: list[Slice] = []
    gap_s, start_s = None, 0.0
    lengths_s = _lengths_s(verdict, stages)
    for index in drawn:
        if cycles and index != cycles[-1].index + 1:
            gap_s = start_s
        phase = "fill" if index < depth else "flush" if index >= micro_batches else "main"
        cycles.append(Cycle(index, phase, start_s))
        slices += _slices_of_cycle(stages, index, start_s, depth, micro_batches)
        start_s += lengths_s(index)
    return Schedule(
        tuple(cycles), tuple(slices), gap_s, total - len(drawn), start_s, _after(verdict, start_s)
    )


def _lengths_s(verdict: Verdict, stages: list[StageTime]) -> Callable[[int], float]:
    """Seconds of a pipeline cycle by its index. Syncs last as long as in a cycle of the main phase."""
    pipeline = verdict.pipeline
    if not pipeline.pipelined:
        return lambda index: pipeline.cycle_s
    work = work_of(stages)
    micro_batches, training = pipeline.micro_batches, any(stage.backward_s for stage in stages)
    sync_s = pipeline.cycle_s - cycle_s(work, full_cycle(len(work), training), 0.0)
    return lambda index: cycle_s(work, busy_in(index, micro_batches, len(work), training), sync_s)


def work_of(stages: Sequence[StageTime]) -> list[StageWork]:
    """A verdict's stages for the pipeline's rules. A stash is written forward and read backward."""
    return [
        StageWork(
            stage.ipu,
            stage.forward_s + stage.stash_s / 2,
            stage.recompute_s + stage.backward_s + stage.stash_s / 2,
            stage.copies_s - stage.copies_back_s,
            stage.copies_back_s,
        )
        for stage in stages
    ]


def _drawn_cycles(total: int, depth: int) -> list[int]:
    head = depth + _MAIN_CYCLES_DRAWN
    if total <= 2 * head + 1:
        return list(range(total))
    return [*range(head), *range(total - head, total)]


def _slices_of_cycle(
    stages: list[StageTime], cycle: int, cycle_start_s: float, depth: int, micro_batches: int
) -> list[Slice]:
    """Forward stages in order, then backward stages in reverse order; the stages of one IPU run serially."""
    pipelined = depth > 0
    free_s: dict[int, float] = {}
    slices = []

    def add(stage: StageTime, part: str, micro_batch: int, duration_s: float) -> None:
        if duration_s > 0:
            # Without a pipeline, only one stage runs at a time.
            worker = stage.ipu if pipelined else -1
            start_s = free_s.get(worker, cycle_start_s)
            slices.append(Slice(stage.ipu, stage.stage, part, cycle, micro_batch, start_s, duration_s))
            free_s[worker] = start_s + duration_s

    stash_s: dict[int, float] = defaultdict(float)
    copies_s: dict[int, float] = defaultdict(float)
    for stage in stages:
        micro_batch = cycle - (stage.stage if pipelined else 0)
        if 0 <= micro_batch < micro_batches:
            add(stage, "forward", micro_batch, stage.forward_s)
            # Written in the forward pass, read in the backward pass.
            stash_s[stage.stage] += stage.stash_s / 2
            copies_s[stage.stage] += stage.copies_s - stage.copies_back_s
    for stage in reversed(stages):
        micro_batch = cycle - (depth - stage.stage if pipelined else 0)
        if 0 <= micro_batch < micro_batches and stage.backward_s > 0:
            add(stage, "recompute", micro_batch, stage.recompute_s)
            add(stage, "backward", micro_batch, stage.backward_s)
            stash_s[stage.stage] += stage.stash_s / 2
            copies_s[stage.stage] += stage.copies_back_s
    for part, of_stage in (("stash", stash_s), ("copies", copies_s)):
        for stage in stages:
            add(stage, part, -1, of_stage[stage.stage])
    return slices


def _after(verdict: Verdict, start_s: float) -> tuple[Part, ...]:
    parts = []
    named = [*verdict.details.update_parts_s.items(), (HOST, verdict.host_s)]
    for name, duration_s in named:
        if duration_s > 0:
            parts.append(Part(name, start_s, duration_s))
            start_s += duration_s
    return tuple(parts)
