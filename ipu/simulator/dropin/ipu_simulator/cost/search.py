"""Finds the fastest placement of a program's blocks that fits, by branch and bound (exact).

Candidates are evaluated with the same time and memory models as any program, in the order of a lower bound of
their time. The first that fits and is faster than every remaining bound is optimal. If the search reaches its
limit of evaluations first, `Found.gap` bounds how much faster another candidate could be.
"""

from __future__ import annotations

import copy
import gc
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Callable, Collection, Iterable, Mapping, NamedTuple, Sequence

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
    load_of,
    program_of,
    stage_loads,
    sum_of_loads,
)
from .update import Update, trained_weights, update_with
from .verdict import IpuMemory


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


class _Run(NamedTuple):
    """Consecutive blocks on one IPU, which are a stage: those from `first` to before `end`.

    Its work at a proportion and what it sends depend on nothing else of a placement.
    """

    first: int
    end: int
    stages_after: int


@dataclass(frozen=True)
class _StageParts:
    """What a stage does, apart from memory proportions.

    :param load: with the work of some proportion.
    :param ops: the operations of its forward pass, recomputation and backward pass.
    """

    load: StageLoad
    ops: tuple[tuple[int, ...], ...]
    copied_bytes: tuple[int, int]


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
        self._loads_at: dict[float, dict[int, Load]] = {}
        self._parts: dict[_Run, _StageParts] = {}
        self._sums: dict[tuple[float, tuple[int, ...]], Load] = {}
        self._block_cycles_at: dict[float, list[tuple[float, float]]] = {}
        self._least_cycles: dict[tuple[object, ...], float] = {}
        self._sizes = materialised(graph)  # independent of the placement
        self._weights = trained_weights(graph, stages_of(graph, settings))
        # Of these settings alone: not shared by `with_settings`.
        self._program: Program | None = None
        self._memory_at: dict[tuple[object, ...], IpuMemory] = {}

    @property
    def settings(self) -> Settings:
        return self._settings

    def with_settings(self, settings: Settings) -> PlacementSearch:
        """A search of the same graph with other numbers of micro batches and replicas, or another place or
        sharding of the optimiser's state. It shares all that is known of the graph.
        """
        for name in ("micro_batch_size", "half_partials", "execution", "recompute"):
            assert getattr(settings, name) == getattr(self._settings, name), name
        other = copy.copy(self)
        other._settings = settings
        other._program = None
        other._memory_at = {}
        return other

    def fastest(
        self,
        candidates: Iterable[Candidate],
        max_judged: int = 300,
        max_timed: int = 400,
        known: Candidate | None = None,
        faster_than_s: float = math.inf,
        tick: Callable[[], None] = lambda: None,
    ) -> Found:
        """The fastest of `candidates` that fits and takes less than `faster_than_s`.

        Times at most `max_timed` candidates, and estimates the memory of at most `max_judged` of them. The
        result is never slower than `known`, if that fits. Calls `tick` for each candidate that it times.
        """
        ranked = sorted(((self.lower_bound_s(each), each) for each in candidates), key=lambda pair: pair[0])
        # Candidates are many short-lived objects: keep the garbage collector from traversing the graph each
        # time.
        gc.freeze()
        try:
            return self._fastest(ranked, max_judged, max_timed, known, faster_than_s, tick)
        finally:
            gc.unfreeze()

    def _fastest(
        self,
        ranked: Sequence[tuple[float, Candidate]],
        max_judged: int,
        max_timed: int,
        known: Candidate | None,
        faster_than_s: float,
        tick: Callable[[], None],
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
            tick()
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
        programs = [self._timed(candidate.ipu_of_block, column) for column in columns]
        cycles = [_cycles_of_ipus(each.loads, self._constants) for each in programs]
        # For each IPU its proportions, fastest first.
        ordered = [
            [columns[at][ipu] for at in sorted(range(number), key=lambda at: cycles[at].get(ipu, 0.0))]
            for ipu in range(len(candidate.proportions))
        ]
        if not any(self._step_s(each) < faster_than_s for each in programs):
            fastest_mix = tuple(shares[0] for shares in ordered)
            if self._step_s(self._timed(candidate.ipu_of_block, fastest_mix)) >= faster_than_s:
                return None
        return self._judged(candidate, self._chosen(candidate.ipu_of_block, ordered))

    def lower_bound_s(self, candidate: Candidate) -> float:
        """Lower bound of a weight update: the busiest IPU's blocks for every micro batch, then the update."""
        blocks = candidate.ipu_of_block
        first_of_last_stage = len(blocks) - 1
        while first_of_last_stage > 0 and blocks[first_of_last_stage - 1] == blocks[-1]:
            first_of_last_stage -= 1
        of_ipu: dict[int, list[int]] = {}
        for block, ipu in enumerate(blocks):
            of_ipu.setdefault(ipu, []).append(block)
        cycles_of_ipus = [
            self._least_cycles_of(tuple(mine), first_of_last_stage, candidate.proportions[ipu])
            for ipu, mine in of_ipu.items()
        ]
        pipelined = self._settings.execution == "pipelined"
        compute_s = (max if pipelined else sum)(cycles_of_ipus) / self._target.clock_hz
        factor = self._constants.framework_factor(self._settings.framework)
        micro_batches = self._settings.gradient_accumulation
        stages = 1 + sum(before != after for before, after in pairwise(blocks))
        cycles = pipeline_cycles(micro_batches, stages) if pipelined else micro_batches
        cycles_s = factor * (micro_batches * compute_s + cycles * self._constants.cycle_overhead_s)
        return cycles_s + self.update_s(candidate)

    def _least_cycles_of(
        self, blocks: tuple[int, ...], first_of_last_stage: int, proportions: tuple[float, ...]
    ) -> float:
        """The fewest cycles of these blocks on one IPU, with any of the proportions."""
        key = blocks, min(first_of_last_stage, blocks[-1] + 1), proportions
        if key not in self._least_cycles:
            at = [self._block_cycles(proportion) for proportion in proportions]
            self._least_cycles[key] = min(
                sum(of_block[block][block >= first_of_last_stage] for block in blocks) for of_block in at
            )
        return self._least_cycles[key]

    def update_s(self, candidate: Candidate) -> float:
        if self._settings.optimizer is None:
            return 0.0
        update = self._update(candidate.ipu_of_block, len(candidate.proportions))
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

    def _place(self, ipu_of_block: tuple[int, ...]) -> tuple[Graph, tuple[Stage, ...]]:
        graph = restage(self._graph, ipu_of_block)
        return graph, stages_of(graph, self._settings)

    def _timed(self, ipu_of_block: tuple[int, ...], proportions: tuple[float, ...]) -> Program:
        """The program with these proportions. The graph is placed only if a stage of it is new."""
        runs = _runs(ipu_of_block)
        if self._program is None or any(run not in self._parts for run in runs):
            graph, stages = self._place(ipu_of_block)
            costs = self._costs(proportions[0])
            self._program = program_of(graph, stages, self._settings, self._target, self._constants, costs)
            for run, stage, load, copied in zip(
                runs, stages, self._program.loads, self._program.copied_bytes, strict=True
            ):
                parts = (stage.forward, stage.recompute, stage.backward)
                ops = tuple(tuple(op.index for op in part) for part in parts)
                self._parts[run] = _StageParts(load, ops, copied)
        loads = []
        for index, run in enumerate(runs):
            found, ipu = self._parts[run], ipu_of_block[run.first]
            forward, recompute, backward = (self._sum(part, proportions[ipu]) for part in found.ops)
            loads.append(
                replace(
                    found.load,
                    stage=index,
                    ipu=ipu,
                    forward=forward,
                    recompute=recompute,
                    backward=backward,
                )
            )
        num_ipus = 1 + max(ipu_of_block)
        return replace(
            self._program,
            loads=tuple(loads),
            copied_bytes=tuple(self._parts[run].copied_bytes for run in runs),
            num_ipus=num_ipus,
            update=None if self._program.update is None else self._update(ipu_of_block, num_ipus),
        )

    def _update(self, ipu_of_block: tuple[int, ...], num_ipus: int) -> Update:
        return update_with(
            self._weights, ipu_of_block, num_ipus, self._settings, self._target, self._constants
        )

    def _sum(self, ops: tuple[int, ...], proportion: float) -> Load:
        key = proportion, ops
        if key not in self._sums:
            if proportion not in self._loads_at:
                self._loads_at[proportion] = {
                    index: load_of(cost, self._target) for index, cost in self._costs(proportion).items()
                }
            of_op = self._loads_at[proportion]
            self._sums[key] = sum_of_loads(of_op[index] for index in ops)
        return self._sums[key]

    def _step_s(self, program: Program) -> float:
        return program.step_s(self._target, self._constants)

    def _memory(
        self,
        ipu_of_block: tuple[int, ...],
        proportions: Mapping[int, float],
        only: Collection[int] | None = None,
    ) -> MemoryEstimate:
        """Memory of all IPUs, or of those in `only`; the proportions of the others don't matter then."""
        graph, stages = self._place(ipu_of_block)
        some = next(iter(proportions.values()))

        def op_cost(op: Op) -> OpCost:
            # Sums of gradients take no time, but have code.
            if op.index in self._sizes.sums:
                return cost_of(op, graph, self._settings, self._target)
            return self._costs(proportions.get(op.ipu, some))[op.index]

        return memory_of(
            graph,
            stages,
            self._settings,
            self._target,
            memory_constants(),
            op_cost=op_cost,
            sizes=self._sizes,
            only=only,
        )

    def _memory_of_ipus(
        self, ipu_of_block: tuple[int, ...], proportions: Mapping[int, float]
    ) -> dict[int, IpuMemory]:
        """Memory of the IPUs of `proportions`: it depends only on an IPU's stages and proportion."""
        on_ipu: dict[int, tuple[_Run, ...]] = {}
        for run in _runs(ipu_of_block):
            ipu = ipu_of_block[run.first]
            on_ipu[ipu] = (*on_ipu.get(ipu, ()), run)
        keys = {ipu: (ipu, on_ipu.get(ipu), share) for ipu, share in proportions.items()}
        unknown = [ipu for ipu, key in keys.items() if key not in self._memory_at]
        if unknown:
            for memory in self._memory(ipu_of_block, proportions, unknown).ipus:
                self._memory_at[keys[memory.ipu]] = memory
        return {ipu: self._memory_at[key] for ipu, key in keys.items()}

    def _chosen(self, ipu_of_block: tuple[int, ...], ordered: Sequence[Sequence[float]]) -> tuple[float, ...]:
        """For each IPU the first proportion that fits; if none does, the one that is least over.

        An IPU's memory is estimated only for those until one fits.
        """
        chosen = {ipu: shares[0] for ipu, shares in enumerate(ordered)}
        least_over: dict[int, int] = {}
        # The last IPUs may have no blocks.
        waiting = {ipu: list(ordered[ipu]) for ipu in range(1 + max(ipu_of_block))}
        while waiting:
            next_shares = {ipu: shares.pop(0) for ipu, shares in waiting.items()}
            for ipu, memory in self._memory_of_ipus(ipu_of_block, next_shares).items():
                over = max(0, memory.fullest_tile_bytes - self._target.bytes_per_tile)
                if ipu not in least_over or over < least_over[ipu]:
                    chosen[ipu], least_over[ipu] = next_shares[ipu], over
                if not over or not waiting[ipu]:
                    del waiting[ipu]
        return tuple(chosen[ipu] for ipu in range(len(ordered)))

    def _judged(self, candidate: Candidate, proportions: tuple[float, ...]) -> Judged:
        blocks = candidate.ipu_of_block
        of_ipu = dict(enumerate(proportions[: 1 + max(blocks)]))
        memories = self._memory_of_ipus(blocks, of_ipu)
        program = self._timed(blocks, proportions)
        cycles = _cycles_of_ipus(program.loads, self._constants)
        fullest = max(memories.values(), key=lambda memory: memory.fullest_tile_bytes)
        fits = all(each.fullest_tile_bytes <= each.tile_capacity_bytes for each in memories.values())
        return Judged(
            ipu_of_block=blocks,
            proportions=proportions,
            step_s=self._step_s(program),
            cycle_s=program.cycle_s(self._target, self._constants),
            busiest_ipu=max(cycles, key=lambda ipu: cycles[ipu]),
            fullest_ipu=fullest.ipu,
            headroom_bytes=fullest.usable_bytes - fullest.peak_bytes,
            # Streaming memory may be too small where the IPUs' isn't.
            fits=fits and self._memory(blocks, of_ipu).fits,
        )


def _runs(ipu_of_block: Sequence[int]) -> list[_Run]:
    """The stages of a placement, in order."""
    starts = [0, *(at for at in range(1, len(ipu_of_block)) if ipu_of_block[at] != ipu_of_block[at - 1])]
    ends = [*starts[1:], len(ipu_of_block)]
    return [
        _Run(first, end, len(starts) - index)
        for index, (first, end) in enumerate(zip(starts, ends, strict=True), start=1)
    ]


def _work(load: StageLoad) -> Load:
    return load.forward + load.backward + load.accumulation


def _step_s(judged: Judged) -> float:
    return judged.step_s


def _cycles_of_ipus(loads: Sequence[StageLoad], values: Constants) -> dict[int, float]:
    cycles: dict[int, float] = {}
    for load in loads:
        cycles[load.ipu] = cycles.get(load.ipu, 0.0) + load.total.cycles(values)
    return cycles
