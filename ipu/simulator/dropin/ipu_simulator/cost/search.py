"""Finds the fastest placement of a program's blocks that fits, by branch and bound (exact).

Candidates are evaluated with the same time and memory models as any program, in the order of a lower bound of
their time. The first that fits and is faster than every remaining bound is optimal. If the search reaches its
limit of evaluations first, `Found.gap` bounds how much faster another candidate could be.
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Iterable, Mapping, Sequence

from ..environment import Target
from ..graph.ir import Graph, Op
from ..graph.stages import Stage, restage, stages_of
from .aliases import materialised
from .constants import Constants, constants, memory_constants
from .memory import MemoryEstimate, memory_of
from .ops import OpCost
from .ops import op_cost as cost_of
from .pipeline import pipeline_cycles
from .settings import Settings
from .time import (
    Load,
    Program,
    StageLoad,
    costs_of,
    program_of,
    stage_loads,
)
from .update import trained_weights, update_with


@dataclass(frozen=True)
class Candidate:
    """The IPU of each block, and the memory proportions to choose from on each IPU."""

    ipu_of_block: tuple[int, ...]
    proportions: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Judged:
    """A candidate with the proportion chosen for each IPU, and its predicted time and memory.

    :param headroom_bytes: bytes that the IPU with the fullest tile has free, at its unevenness; negative if
        it does not fit.
    """

    ipu_of_block: tuple[int, ...]
    proportions: tuple[float, ...]
    step_s: float
    cycle_s: float
    busiest_ipu: int
    fullest_ipu: int
    headroom_bytes: int
    fits: bool


@dataclass(frozen=True)
class Found:
    """The result of a search.

    :param best: the fastest that fits; None if no evaluated candidate does.
    :param nearest: if none fits, the candidate that is least over.
    :param faster: evaluated candidates that are faster but don't fit, fastest first.
    :param gap: no candidate that wasn't evaluated is faster than `best` by more than this fraction; 0:
        optimal.
    :param unjudged_s: lower bound in seconds of the candidates that weren't evaluated; infinite if none
        matters.
    """

    best: Judged | None
    nearest: Judged | None
    faster: tuple[Judged, ...]
    candidates: int
    judged: int
    gap: float
    unjudged_s: float


@dataclass(frozen=True)
class _Placed:
    """A candidate with one proportion for each IPU, as a program."""

    graph: Graph
    stages: tuple[Stage, ...]
    settings: Settings
    costs: Mapping[int, OpCost]
    program: Program


class PlacementSearch:
    """Searches placements of one program on one machine.

    :param graph: captured with every block as a separate stage.
    """

    def __init__(self, graph: Graph, settings: Settings, target: Target) -> None:
        self._graph = graph
        self._settings = settings
        self._target = target
        self._constants: Constants = constants()
        self._costs_at: dict[float, Mapping[int, OpCost]] = {}
        self._block_cycles_at: dict[float, list[tuple[float, float]]] = {}
        self._sizes = materialised(graph)  # independent of the placement
        self._weights = trained_weights(graph, stages_of(graph, settings))

    def fastest(
        self,
        candidates: Iterable[Candidate],
        max_judged: int = 300,
        max_timed: int = 400,
        known: Candidate | None = None,
        faster_than_s: float = math.inf,
    ) -> Found:
        """The fastest of `candidates` that fits and takes less than `faster_than_s`.

        Times at most `max_timed` candidates, and estimates the memory of at most `max_judged` of them. The
        result is never slower than `known`, if that fits.
        """
        ranked = sorted(((self.lower_bound_s(each), each) for each in candidates), key=lambda pair: pair[0])
        # Candidates are many short-lived objects: keep the garbage collector from traversing the graph each
        # time.
        gc.freeze()
        try:
            return self._fastest(ranked, max_judged, max_timed, known, faster_than_s)
        finally:
            gc.unfreeze()

    def _fastest(
        self,
        ranked: Sequence[tuple[float, Candidate]],
        max_judged: int,
        max_timed: int,
        known: Candidate | None,
        faster_than_s: float,
    ) -> Found:
        """`fastest` for candidates sorted by lower bound."""
        best = None if known is None else self.judge(known)
        if best is not None and not (best.fits and best.step_s < faster_than_s):
            best = None
        limit_s = faster_than_s if best is None else best.step_s
        misfits: list[Judged] = []
        judged = 0
        unjudged_s = math.inf
        for timed, (bound_s, candidate) in enumerate(ranked):
            if bound_s >= limit_s:
                break
            if judged == max_judged or timed == max_timed:
                unjudged_s = bound_s
                break
            result = self.judge(candidate, limit_s)
            if result is None:
                continue
            judged += 1
            if not result.fits:
                misfits.append(result)
            elif result.step_s < limit_s:
                best, limit_s = result, result.step_s
        faster = [each for each in misfits if best is None or each.step_s < best.step_s]
        nearest = max(misfits, key=lambda each: each.headroom_bytes) if best is None and misfits else None
        missed = 1 - unjudged_s / best.step_s if best else 1.0
        gap = missed if math.isfinite(unjudged_s) else 0.0
        return Found(best, nearest, tuple(sorted(faster, key=_step_s)), len(ranked), judged, gap, unjudged_s)

    def judge(self, candidate: Candidate, faster_than_s: float = math.inf) -> Judged | None:
        """Time and memory of a candidate; None if it isn't faster than `faster_than_s`.

        Cycles and memory of an IPU depend only on its proportion, so the choice is made per IPU: the fastest
        proportion that fits, or if none does the one that is least over.
        """
        number = max(len(choices) for choices in candidate.proportions)
        columns = [
            tuple(choices[min(column, len(choices) - 1)] for choices in candidate.proportions)
            for column in range(number)
        ]
        placed = [self._placed(candidate.ipu_of_block, column) for column in columns]
        if not any(self._step_s(each) < faster_than_s for each in placed):
            fastest_mix = self._mix(candidate, columns, placed, None)
            if self._step_s(self._placed(candidate.ipu_of_block, fastest_mix)) >= faster_than_s:
                return None
        memories = [self._memory(each) for each in placed]
        if number > 1:
            mixed = self._mix(candidate, columns, placed, [_fullest_tiles(memory) for memory in memories])
            placed = [self._placed(candidate.ipu_of_block, mixed)]
            memories = [self._memory(placed[0])]
        return self._judged(candidate, placed[0], memories[0])

    def lower_bound_s(self, candidate: Candidate) -> float:
        """Lower bound of a weight update: the busiest IPU's blocks for every micro batch, then the update."""
        blocks = candidate.ipu_of_block
        first_of_last_stage = len(blocks) - 1
        while first_of_last_stage > 0 and blocks[first_of_last_stage - 1] == blocks[-1]:
            first_of_last_stage -= 1
        of_ipu: dict[int, float] = {}
        for ipu in set(blocks):
            of_ipu[ipu] = min(
                sum(
                    once if block >= first_of_last_stage else again
                    for block, (again, once) in enumerate(self._block_cycles(proportion))
                    if blocks[block] == ipu
                )
                for proportion in candidate.proportions[ipu]
            )
        pipelined = self._settings.execution == "pipelined"
        compute_s = (max if pipelined else sum)(of_ipu.values()) / self._target.clock_hz
        factor = self._constants.framework_factor(self._settings.framework)
        micro_batches = self._settings.gradient_accumulation
        stages = 1 + sum(before != after for before, after in pairwise(blocks))
        cycles = pipeline_cycles(micro_batches, stages) if pipelined else micro_batches
        cycles_s = factor * (micro_batches * compute_s + cycles * self._constants.cycle_overhead_s)
        return cycles_s + self.update_s(candidate)

    def update_s(self, candidate: Candidate) -> float:
        if self._settings.optimizer is None:
            return 0.0
        blocks, num_ipus = candidate.ipu_of_block, len(candidate.proportions)
        update = update_with(self._weights, blocks, num_ipus, self._settings, self._target, self._constants)
        return sum(update.parts_s(self._target, self._constants).values())

    def _block_cycles(self, proportion: float) -> list[tuple[float, float]]:
        """For each block: (cycles with recomputation, cycles without).

        Stashes are left out: the number of stashed tensors depends on which blocks share a stage.
        """
        if proportion not in self._block_cycles_at:
            loads = stage_loads(
                self._graph,
                stages_of(self._graph, self._settings),
                self._costs(proportion),
                self._settings,
                self._target,
                self._constants,
            )
            self._block_cycles_at[proportion] = [
                ((_work(load) + load.recompute).cycles(self._constants), _work(load).cycles(self._constants))
                for load in loads
            ]
        return self._block_cycles_at[proportion]

    def _costs(self, proportion: float) -> Mapping[int, OpCost]:
        if proportion not in self._costs_at:
            settings = replace(self._settings, matmul_proportions=(proportion,) * self._graph.num_ipus)
            self._costs_at[proportion] = costs_of(self._graph, settings, self._target)
        return self._costs_at[proportion]

    def _placed(self, ipu_of_block: tuple[int, ...], proportions: tuple[float, ...]) -> _Placed:
        graph = restage(self._graph, ipu_of_block)
        settings = replace(self._settings, matmul_proportions=proportions)
        costs = {op.index: self._costs(proportions[op.ipu])[op.index] for op in graph.ops}
        stages = stages_of(graph, settings)
        program = program_of(graph, stages, settings, self._target, self._constants, costs)
        return _Placed(graph, stages, settings, costs, program)

    def _step_s(self, placed: _Placed) -> float:
        return placed.program.step_s(self._target, self._constants)

    def _memory(self, placed: _Placed) -> MemoryEstimate:

        def op_cost(op: Op) -> OpCost:
            # Sums of gradients take no time, but have code.
            if op.index in self._sizes.sums:
                return cost_of(op, placed.graph, placed.settings, self._target)
            return placed.costs[op.index]

        return memory_of(
            placed.graph,
            placed.stages,
            placed.settings,
            self._target,
            memory_constants(),
            op_cost=op_cost,
            sizes=self._sizes,
        )

    def _mix(
        self,
        candidate: Candidate,
        columns: Sequence[tuple[float, ...]],
        placed: Sequence[_Placed],
        tiles: Sequence[Mapping[int, int]] | None,
    ) -> tuple[float, ...]:
        """The fastest proportion for each IPU; if `tiles` is given, among those that fit."""
        cycles = [_cycles_of_ipus(each.program.loads, self._constants) for each in placed]
        mixed = []
        for ipu in range(len(candidate.proportions)):

            def order(column: int, ipu: int = ipu) -> tuple[float, float]:
                used = 0 if tiles is None else tiles[column].get(ipu, 0)
                over = max(0, used - self._target.bytes_per_tile)
                return over, cycles[column].get(ipu, 0.0)

            mixed.append(columns[min(range(len(columns)), key=order)][ipu])
        return tuple(mixed)

    def _judged(self, candidate: Candidate, placed: _Placed, memory: MemoryEstimate) -> Judged:
        tiles = _fullest_tiles(memory)
        cycles = _cycles_of_ipus(placed.program.loads, self._constants)
        fullest = max(tiles, key=lambda ipu: tiles[ipu])
        room = next(each.usable_bytes - each.peak_bytes for each in memory.ipus if each.ipu == fullest)
        return Judged(
            ipu_of_block=candidate.ipu_of_block,
            proportions=placed.settings.matmul_proportions,
            step_s=self._step_s(placed),
            cycle_s=placed.program.cycle_s(self._target, self._constants),
            busiest_ipu=max(cycles, key=lambda ipu: cycles[ipu]),
            fullest_ipu=fullest,
            headroom_bytes=room,
            fits=memory.fits,
        )


def _fullest_tiles(memory: MemoryEstimate) -> dict[int, int]:
    """Bytes of the fullest tile, by IPU."""
    return {each.ipu: each.fullest_tile_bytes for each in memory.ipus}


def _work(load: StageLoad) -> Load:
    return load.forward + load.backward + load.accumulation


def _step_s(judged: Judged) -> float:
    return judged.step_s


def _cycles_of_ipus(loads: Sequence[StageLoad], values: Constants) -> dict[int, float]:
    cycles: dict[int, float] = {}
    for load in loads:
        cycles[load.ipu] = cycles.get(load.ipu, 0.0) + load.total.cycles(values)
    return cycles
