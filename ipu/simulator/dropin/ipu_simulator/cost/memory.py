"""Does a program fit? Memory of each IPU over a weight update, by component, and a proof where it doesn't.

Always live are weights, gradient accumulators, optimiser state that is kept on chip, stashes, stream buffers
and code. The rest comes and goes: `pipeline_cycle` says what a cycle of the main phase takes, `weight_memory`
what the update takes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Callable, Iterable, Mapping, Sequence

from ..graph.ir import BYTES_OF_DTYPE, Graph, Op
from ..graph.stages import Stage
from ..report.verdict import (
    COMPONENTS,
    Assumption,
    Buffer,
    IpuMemory,
    LivenessPoint,
    Overflow,
)
from ..targets import Target
from .code_memory import code, outline_key
from .liveness import Timeline
from .materialised import Materialised, materialised
from .memory_constants import MemoryConstants
from .op_cost import OpCost
from .overflow import overflow
from .pipeline_cycle import crossing_tensors, schedule, stashed_bytes, timeline
from .rules import op_cost as cost_of
from .settings import Settings
from .weight_memory import WeightMemory, homes


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of each IPU of a replica; `overflows` names those that don't suffice, and is empty if all do."""

    ipus: tuple[IpuMemory, ...]
    liveness: tuple[LivenessPoint, ...]
    overflows: tuple[Overflow, ...]
    assumptions: tuple[Assumption, ...]

    @property
    def fits(self) -> bool:
        return not self.overflows


@dataclass(frozen=True)
class IpuPlan:
    """What an IPU has always, and what comes and goes in a cycle of the main phase and in the update."""

    always: tuple[Buffer, ...]
    timeline: Timeline


def memory_of(
    graph: Graph,
    stages: Sequence[Stage],
    settings: Settings,
    target: Target,
    constants: MemoryConstants,
    op_cost: Callable[[Op], OpCost] | None = None,
    sizes: Materialised | None = None,
) -> MemoryEstimate:
    """Memory of every IPU of one replica. `op_cost`, `sizes`: costs, and tensors in memory, known already."""
    op_cost = op_cost or _cached(graph, settings, target)
    plans = plans_of(graph, stages, settings, constants, op_cost, sizes)
    ipus: list[IpuMemory] = []
    points: list[LivenessPoint] = []
    overflows: list[Overflow] = []
    for ipu, plan in enumerate(plans):
        always = _by_component(plan.always)
        totals = sum(always.values()) + plan.timeline.live_bytes().sum(axis=0)
        worst = int(totals.argmax()) if totals.size else None
        at_worst = plan.always if worst is None else (*plan.always, *plan.timeline.live_at(worst))
        memory = _ipu_memory(ipu, always, _by_component(at_worst), target, constants)
        ipus.append(memory)
        points += [
            LivenessPoint(ipu, event.phase, event.label, int(total))
            for event, total in zip(plan.timeline.events, totals, strict=True)
        ]
        if memory.fullest_tile_bytes > memory.tile_capacity_bytes:
            moment = "always" if worst is None else str(plan.timeline.events[worst])
            usable_bytes = int(memory.capacity_bytes / constants.tile_imbalance)
            overflows.append(overflow(ipu, moment, at_worst, usable_bytes))
    return MemoryEstimate(tuple(ipus), tuple(points), tuple(overflows), constants.assumptions)


def _ipu_memory(
    ipu: int,
    always: Mapping[str, int],
    at_worst: Mapping[str, int],
    target: Target,
    constants: MemoryConstants,
) -> IpuMemory:
    peak_bytes = sum(at_worst.values())
    return IpuMemory(
        ipu=ipu,
        capacity_bytes=target.bytes_per_ipu,
        always_live_bytes=sum(always.values()),
        peak_bytes=peak_bytes,
        components=at_worst,
        always_live_components=always,
        fullest_tile_bytes=math.ceil(peak_bytes / target.tiles_per_ipu * constants.tile_imbalance),
        tile_capacity_bytes=target.bytes_per_tile,
    )


def plans_of(
    graph: Graph,
    stages: Sequence[Stage],
    settings: Settings,
    constants: MemoryConstants,
    op_cost: Callable[[Op], OpCost],
    sizes: Materialised | None = None,
) -> list[IpuPlan]:
    """The buffers of each IPU."""
    home, sizes = homes(graph), sizes or materialised(graph)
    crossing = crossing_tensors(graph)
    weights = WeightMemory(graph, sizes, settings, constants)
    streams = _streams(graph, constants)
    pipelined = settings.execution == "pipelined"
    plans: list[IpuPlan] = []
    for ipu in range(graph.num_ipus):
        on_ipu = [stage for stage in stages if stage.ipu == ipu]
        ops = [op for stage in on_ipu for op in (*stage.forward, *stage.recompute, *stage.backward)]
        updated = [
            weight for weight in graph.parameters if home[weight.id] == ipu and weight.id in graph.gradients
        ]
        always = [
            *weights.kept(ipu, home),
            *(_stashes(graph, on_ipu, settings) if pipelined else ()),
            *streams.get(ipu, ()),
            *code(graph, ops, updated, settings.replicas, op_cost, constants),
        ]
        inputs = {tensor.id for tensor in graph.tensors if tensor.role == "input"}
        resident = frozenset(inputs | {tensor_id for tensor_id, place in home.items() if place == ipu})
        steps = schedule(graph, on_ipu, pipelined)
        cycle = timeline(graph, steps, resident, crossing, sizes, op_cost)
        plans.append(IpuPlan(tuple(always), cycle.then(weights.update(ipu, home))))
    return plans


def _stashes(graph: Graph, stages: Sequence[Stage], settings: Settings) -> list[Buffer]:
    buffers: list[Buffer] = []
    for stage in stages:
        for tensor_id, size in stashed_bytes(graph, stage).items():
            tensor, op = graph.tensors[tensor_id], graph.producers.get(tensor_id)
            if settings.stash_bytes_per_element is not None and tensor.dtype in ("float32", "float16"):
                size = size // BYTES_OF_DTYPE[tensor.dtype] * settings.stash_bytes_per_element
            what = tensor.name or (op.name if op else "tensor")
            name = f"{stage.stash_slots} x {what} {list(tensor.shape)}"
            buffers.append(Buffer(name, "stashes", op.module if op else "", size * stage.stash_slots))
    return [buffer for buffer in buffers if buffer.bytes]


def _streams(graph: Graph, constants: MemoryConstants) -> dict[int, list[Buffer]]:
    """Buffers of what comes from the host, on the IPU of its first use, and of what goes there."""
    place: dict[int, int] = {}
    for op in graph.ops:
        for tensor_id in op.inputs:
            place.setdefault(graph.owner(tensor_id).id, op.ipu)
        for tensor_id in op.outputs:
            place.setdefault(graph.owner(tensor_id).id, op.ipu)
    buffers: dict[int, list[Buffer]] = {}
    for tensor_id in dict.fromkeys((*graph.inputs, *graph.outputs)):
        tensor = graph.tensors[tensor_id]
        size = math.ceil(tensor.bytes * constants.stream_buffers_per_tensor)
        buffer = Buffer(tensor.name or f"output {list(tensor.shape)}", "stream_buffers", "", size)
        buffers.setdefault(place.get(graph.owner(tensor_id).id, 0), []).append(buffer)
    return buffers


def _by_component(buffers: Iterable[Buffer]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for buffer in buffers:
        totals[buffer.component] += buffer.bytes
    return {component: totals[component] for component in COMPONENTS}


def _cached(graph: Graph, settings: Settings, target: Target) -> Callable[[Op], OpCost]:
    """Costs of operations; those of equal shape on the same IPU are worked out once."""
    known: dict[tuple[object, ...], OpCost] = {}

    def op_cost(op: Op) -> OpCost:
        key = (op.ipu, op.phase, *outline_key(op, graph))
        if key not in known:
            known[key] = cost_of(op, graph, settings, target)
        return known[key]

    return op_cost
