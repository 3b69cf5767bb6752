"""Which stages are busy in each pipeline cycle, and the seconds of all cycles of a weight update.

All IPUs of a replica compute in parallel and synchronise after every pipeline cycle; then all copies between
them happen at once. So a cycle lasts as long as the busiest IPU with the stages that are busy then.

N = G + 2F - 2 cycles make a weight update of G micro batches through F forward stages (PopART,
transforms/pipeline.cpp): micro batch b is in forward stage s in cycle b + s, and in its backward stage in
cycle b + 2(F - 1) - s; the last stage does both in one cycle. In the first and last 2F - 2 cycles some stages
are idle.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Iterable, Sequence


@dataclass(frozen=True)
class Busy:
    """The stages that compute in a cycle: `forward[s]` and `backward[s]` of forward stage s."""

    forward: tuple[bool, ...]
    backward: tuple[bool, ...]


def busy_in(cycle: int, micro_batches: int, forward_stages: int, training: bool) -> Busy:
    """The stages that compute in one cycle, from 0. In inference no backward stage does."""
    stages = range(forward_stages)
    depth = 2 * (forward_stages - 1)
    return Busy(
        tuple(0 <= cycle - stage < micro_batches for stage in stages),
        tuple(training and 0 <= cycle - (depth - stage) < micro_batches for stage in stages),
    )


def full_cycle(forward_stages: int, training: bool = True) -> Busy:
    """A cycle of the main phase."""
    return Busy((True,) * forward_stages, (training,) * forward_stages)


def pipeline_cycles(micro_batches: int, forward_stages: int, training: bool = True) -> int:
    """Cycles of all micro batches: through 2F - 1 stages in training, or F in inference."""
    stages = 2 * forward_stages - 1 if training else forward_stages
    return micro_batches + stages - 1


@functools.lru_cache(maxsize=256)
def cycles_by_stages(micro_batches: int, forward_stages: int, training: bool) -> tuple[tuple[Busy, int], ...]:
    """The sets of stages that are busy together, with the number of cycles of each. They don't depend on G's
    size once all stages are busy together, so that only the first and last cycles are played.
    """
    total = pipeline_cycles(micro_batches, forward_stages, training)
    depth = total - micro_batches
    played: Iterable[int] = range(total)
    counts: Counter[Busy] = Counter()
    if micro_batches > depth:
        counts[busy_in(depth, micro_batches, forward_stages, training)] = micro_batches - depth
        played = (*range(depth), *range(micro_batches, total))
    counts.update(busy_in(cycle, micro_batches, forward_stages, training) for cycle in played)
    return tuple(counts.items())


@dataclass(frozen=True)
class StageWork:
    """Seconds of one stage: computing forward and backward, and sending its results to other IPUs."""

    ipu: int
    forward_s: float
    backward_s: float
    sending_s: float
    sending_back_s: float


def cycle_s(work: Sequence[StageWork], busy: Busy, overhead_s: float) -> float:
    """Seconds of a pipeline cycle: of the busiest IPU, then of the IPU that sends most, and the syncs."""
    computing: dict[int, float] = {}
    sending: dict[int, float] = {}
    for stage, forward, backward in zip(work, busy.forward, busy.backward):
        computing_s = forward * stage.forward_s + backward * stage.backward_s
        sending_s = forward * stage.sending_s + backward * stage.sending_back_s
        computing[stage.ipu] = computing.get(stage.ipu, 0.0) + computing_s
        sending[stage.ipu] = sending.get(stage.ipu, 0.0) + sending_s
    return max(computing.values()) + max(sending.values()) + overhead_s


def cycles_s(work: Sequence[StageWork], micro_batches: int, training: bool, overhead_s: float) -> float:
    """Seconds of all pipeline cycles of `micro_batches`."""
    sets = cycles_by_stages(micro_batches, len(work), training)
    return sum(count * cycle_s(work, busy, overhead_s) for busy, count in sets)
