"""What the stages of a program have to do in one pipeline cycle, before any constant makes seconds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping, Sequence

from ..graph.ir import Graph, Op
from ..graph.stages import Stage
from ..targets import Target
from .constants import Constants
from .materialised import materialised
from .op_cost import OpCost
from .rules import op_cost
from .settings import Settings


@dataclass(frozen=True)
class Load:
    """Work on the fullest tile, by cause. Loads add up."""

    matmul_cycles: float = 0.0
    vertex_cycles: float = 0.0
    compute_sets: float = 0.0
    rearranged_elements: float = 0.0
    flops: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.matmul_cycles + other.matmul_cycles,
            self.vertex_cycles + other.vertex_cycles,
            self.compute_sets + other.compute_sets,
            self.rearranged_elements + other.rearranged_elements,
            self.flops + other.flops,
        )

    def cycles(self, constants: Constants) -> float:
        return (
            constants.matmul_factor * self.matmul_cycles
            + self.vertex_cycles
            + constants.compute_set_cycles * self.compute_sets
            + constants.rearrangement_cycles * self.rearranged_elements
        )


@dataclass(frozen=True)
class StageLoad:
    """One stage's work in a cycle. `accumulation` adds weights' gradients to their accumulators."""

    stage: int
    ipu: int
    forward: Load
    recompute: Load
    backward: Load
    accumulation: Load
    stash: Load

    @property
    def total(self) -> Load:
        return self.forward + self.recompute + self.backward + self.accumulation + self.stash


def load_of(cost: OpCost, target: Target) -> Load:
    return Load(
        cost.matmul_cycles,
        cost.vertex_cycles,
        cost.compute_sets,
        cost.rearranged_elements / target.tiles_per_ipu,
        cost.flops,
    )


def costs_of(graph: Graph, settings: Settings, target: Target) -> Mapping[int, OpCost]:
    """Costs by the index of the operation. Sums of a weight's gradients are free: the accumulator adds."""
    sums = materialised(graph).sums if graph.training else frozenset()
    free = OpCost("view", rule="added by the accumulator")
    return {op.index: free if op.index in sums else op_cost(op, graph, settings, target) for op in graph.ops}


def stage_loads(
    graph: Graph,
    stages: Sequence[Stage],
    costs: Mapping[int, OpCost],
    settings: Settings,
    target: Target,
    constants: Constants,
) -> tuple[StageLoad, ...]:
    """The work of each stage, in their order."""

    def sum_of(ops: Iterable[Op]) -> Load:
        return sum((load_of(costs[op.index], target) for op in ops), Load())

    accumulated = _accumulation(graph, target, constants)
    return tuple(
        StageLoad(
            stage=stage.index,
            ipu=stage.ipu,
            forward=sum_of(stage.forward),
            recompute=sum_of(stage.recompute),
            backward=sum_of(stage.backward),
            accumulation=accumulated.get(stage.index, Load()),
            stash=_stash(graph, stage, settings, target, constants),
        )
        for stage in stages
    )


def _accumulation(graph: Graph, target: Target, constants: Constants) -> dict[int, Load]:
    """By stage: each weight's gradient is added once, where it is made."""
    loads: dict[int, Load] = {}
    for gradient in graph.gradients.values():
        owner = graph.owner(gradient)
        stage = graph.producers[owner.id].stage if owner.id in graph.producers else 0
        cycles = constants.accumulation_cycles * -(-owner.elements // target.tiles_per_ipu)
        loads[stage] = loads.get(stage, Load()) + Load(vertex_cycles=cycles, compute_sets=1)
    return loads


def _stash(graph: Graph, stage: Stage, settings: Settings, target: Target, constants: Constants) -> Load:
    """Each tensor goes into its ring buffer after the forward pass and out of it before the backward pass."""
    if settings.execution != "pipelined" or not stage.stash_slots:
        return Load()
    narrow = settings.stash_bytes_per_element == 1
    per_element = constants.stash_in_8_bits_cycles if narrow else constants.stash_cycles
    tensors = [graph.tensors[number] for number in stage.stashed]
    on_a_tile = sum(-(-tensor.elements // target.tiles_per_ipu) for tensor in tensors)
    compute_sets = 2 * len(tensors) * (2 if narrow else 1)
    return Load(vertex_cycles=2 * per_element * on_a_tile, compute_sets=compute_sets)
