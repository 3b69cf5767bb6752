"""Does a program fit? Memory of each IPU over a weight update, by component, and a proof if it doesn't.

Always live are weights, gradient accumulators, on-chip optimiser state, stashes, stream buffers and code. The
rest varies: `liveness.timeline` gives the buffers of a cycle of the main phase, `WeightMemory.update` those
of the weight update. What is kept off the chip is in the M2000's streaming memory.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..environment import Target
from ..graph.ir import BYTES_OF_DTYPE, Graph, Op, Tensor
from ..graph.stages import Stage
from ..op_table import row_of
from .aliases import Materialised, is_view, materialised
from .constants import MemoryConstants
from .liveness import Event, Lifetime, Timeline, crossing_tensors, schedule, stashed_bytes, timeline
from .ops import PRODUCTS, OpCost
from .ops import op_cost as cost_of
from .serialization import slices_of_weights
from .settings import Settings
from .verdict import ASSUMED_COMPONENTS, COMPONENTS, Buffer, IpuMemory, LivenessPoint, Overflow
from .vertices import vertices

# Buffers of a component that reports name.
_LARGEST_OF_A_COMPONENT = 3


def homes(graph: Graph) -> dict[int, int]:
    """The IPU that stores each parameter, buffer and constant: that of its first use, or IPU 0 if unused."""
    first_use: dict[int, int] = {}
    for op in graph.ops:
        for tensor_id in op.inputs:
            first_use.setdefault(graph.owner(tensor_id).id, op.ipu)
    return {
        tensor.id: first_use.get(tensor.id, 0)
        for tensor in graph.tensors
        if tensor.role in ("parameter", "buffer", "constant") and tensor.base is None
    }


@dataclass(frozen=True)
class WeightMemory:
    """Memory of weights under the settings of a program."""

    graph: Graph
    sizes: Materialised
    settings: Settings
    constants: MemoryConstants

    def updated_elements(self, weight: Tensor) -> int:
        """Number of elements of a weight that one replica updates: all, or its shard."""
        if weight.elements < self.constants.sharding_threshold_elements:
            return weight.elements
        return math.ceil(weight.elements / self.settings.shards)

    def state_bytes(self, weight: Tensor) -> int:
        """Bytes of one replica's optimiser state for a weight, on or off chip."""
        optimizer = self.settings.optimizer
        if optimizer is None or weight.id not in self.graph.gradients:
            return 0
        return self.updated_elements(weight) * sum(optimizer.state_bytes_per_element)

    def kept(self, ipu: int, homes: Mapping[int, int]) -> list[Buffer]:
        """Weights, accumulators and state that are always live on an IPU."""
        buffers: list[Buffer] = []
        optimizer = self.settings.optimizer
        for tensor in (self.graph.tensors[tensor_id] for tensor_id, home in homes.items() if home == ipu):
            name = tensor.name or f"constant {list(tensor.shape)}"
            size = self.sizes.bytes.get(tensor.id, tensor.bytes)
            buffers.append(Buffer(name, "weights", "", size))
            if tensor.id in self.graph.gradients:
                accumulator_bytes = tensor.elements * self.settings.accumulator_bytes
                buffers.append(Buffer(name, "gradient_accumulators", "", accumulator_bytes))
                if optimizer is not None and optimizer.location == "on_chip":
                    buffers.append(Buffer(name, "optimizer_state", "", self.state_bytes(tensor)))
        return [buffer for buffer in buffers if buffer.bytes]

    def collectives(self, weights: Sequence[Tensor]) -> int:
        """Distinct collectives of these weights' gradients: one for each shape of those that are sharded, and
        one for all others, whose gradients are reduced together.
        """
        least = self.constants.sharding_threshold_elements
        sharded = [weight for weight in weights if self.settings.shards > 1 and weight.elements >= least]
        return len({weight.shape for weight in sharded}) + (len(sharded) < len(weights))

    def update(self, ipu: int, homes: Mapping[int, int]) -> Timeline:
        """The weight update of an IPU, one weight after another."""
        weights = [
            weight
            for weight in self.graph.parameters
            if homes[weight.id] == ipu and weight.id in self.graph.gradients
        ]
        if self.settings.optimizer is None:
            return Timeline((), ())
        factors: dict[int, int] = {}
        for (weight_id, _), factor in slices_of_weights(self.graph).items():
            factors[weight_id] = max(factor, factors.get(weight_id, 1))
        lifetimes = tuple(
            Lifetime(buffer, event, event)
            for event, weight in enumerate(weights)
            for buffer in self.update_buffers(weight, factors.get(weight.id, 1))
        )
        return Timeline(tuple(Event("update", weight.name) for weight in weights), lifetimes)

    def update_buffers(self, weight: Tensor, slices: int) -> list[Buffer]:
        """Buffers of one weight's update; for a serialised matmul, of one slice at a time.

        Off-chip state is loaded and stored with its weight. If there is state, the update is computed in
        float32. Sharding adds the reduced shard of the gradient and the gathered weight.
        """
        optimizer = self.settings.optimizer
        assert optimizer is not None
        updated = self.updated_elements(weight)
        elements = math.ceil(updated / slices)
        buffers: list[Buffer] = []
        if optimizer.state_bytes_per_element:
            size = math.ceil(elements * self.constants.update_bytes_per_element)
            buffers.append(Buffer(f"update of {weight.name}", "temporary", "", size))
            if optimizer.location == "off_chip":
                size = elements * sum(optimizer.state_bytes_per_element)
                buffers.append(Buffer(f"state of {weight.name}", "optimizer_state", "", size))
        if updated < weight.elements:
            size = elements * self.settings.accumulator_bytes
            buffers.append(Buffer(f"reduced gradient of {weight.name}", "temporary", "", size))
            gathered = math.ceil(weight.bytes / slices)
            buffers.append(Buffer(f"gathered {weight.name}", "temporary", "", gathered))
        return buffers


def outline_key(op: Op, graph: Graph) -> tuple[object, ...]:
    """Equal for operations that share their code (outlining)."""
    shapes = tuple(
        (graph.tensors[tensor_id].shape, graph.tensors[tensor_id].dtype)
        for tensor_id in (*op.inputs, *op.outputs)
    )
    return (op.name, shapes, repr(sorted(op.attributes.items())))


def _compute_sets(cost: OpCost, constants: MemoryConstants) -> float:
    """Compute sets with code: a series of products is a loop over those of one product."""
    if cost.kind in PRODUCTS:
        return min(cost.compute_sets, constants.code_compute_sets_of_a_product)
    return cost.compute_sets


def code(
    graph: Graph,
    ops: Sequence[Op],
    collectives: int,
    replicas: int,
    op_cost: Callable[[Op], OpCost],
    constants: MemoryConstants,
) -> list[Buffer]:
    """Code and exchange code of an IPU that runs `ops`, recomputation included, and has `collectives`.

    An assumed model: there are no published figures. Operations of equal shapes share their code, as PopART
    outlines repeated layers; recomputation shares the code of the forward pass.
    """
    calls = [op for op in ops if not is_view(op, graph)]
    distinct = {outline_key(op, graph): op for op in calls}
    compute_sets = round(sum(_compute_sets(op_cost(op), constants) for op in distinct.values()))
    sizes = {
        ("control program and runtime", "code"): constants.code_bytes_fixed,
        (f"vertices of {len(distinct)} distinct operations", "code"): (
            constants.code_bytes_per_distinct_operation * len(distinct)
        ),
        (f"{len(calls)} calls of operations", "code"): constants.code_bytes_per_call * len(calls),
        (f"exchanges of {compute_sets} compute sets", "exchange_code"): (
            constants.exchange_code_bytes_per_compute_set * compute_sets
        ),
        ("exchanges of collectives", "exchange_code"): (
            constants.exchange_code_bytes_per_collective * collectives * math.log2(replicas)
        ),
    }
    return [Buffer(name, part, "", round(size)) for (name, part), size in sizes.items() if round(size)]


def overflow(
    ipu: int, moment: str, live: Iterable[Buffer], usable_bytes: int, m2000: int | None = None
) -> Overflow:
    """The fewest of the buffers `live` at one moment whose sum exceeds `usable_bytes`: the largest ones.

    All of them together must exceed it.
    """
    buffers = sorted(live, key=lambda buffer: -buffer.bytes)
    over_bytes = sum(buffer.bytes for buffer in buffers) - usable_bytes
    assert over_bytes > 0, f"{buffers} fit into {usable_bytes}"
    taken: list[Buffer] = []
    taken_bytes = 0
    for buffer in buffers:
        taken.append(buffer)
        taken_bytes += buffer.bytes
        if taken_bytes > usable_bytes:
            break
    return Overflow(ipu, moment, over_bytes, tuple(taken), m2000)


def _overflow_of_ipu(
    ipu: int, moment: str, live: Sequence[Buffer], usable_bytes: int, capacity_bytes: int
) -> Overflow:
    """A proof if buffers whose sizes rest on no assumption exceed the SRAM; otherwise as `overflow`."""
    found = overflow(ipu, moment, live, usable_bytes)
    certain = [buffer for buffer in live if buffer.component not in ASSUMED_COMPONENTS]
    if sum(buffer.bytes for buffer in certain) <= capacity_bytes:
        return found
    return replace(found, buffers=overflow(ipu, moment, certain, usable_bytes).buffers)


def streaming_buffers(
    weights: WeightMemory, homes: Mapping[int, int], stages: Sequence[Stage]
) -> dict[int, list[Buffer]]:
    """What each IPU of a replica keeps in streaming memory."""
    settings, graph = weights.settings, weights.graph
    optimizer = settings.optimizer
    found: dict[int, list[Buffer]] = {}

    def add(ipu: int, name: str, component: str, size: int) -> None:
        if size:
            found.setdefault(ipu, []).append(Buffer(name, component, "", size))

    for weight in graph.parameters:
        ipu = homes[weight.id]
        if optimizer is not None and optimizer.location == "off_chip":
            add(ipu, f"state of {weight.name}", "optimizer_state", weights.state_bytes(weight))
        is_large = weight.elements >= weights.constants.sharding_threshold_elements
        shards = settings.replicas // settings.instances if is_large else 1
        for component, size in (
            ("weights", weight.bytes),
            ("gradient_accumulators", weight.elements * settings.accumulator_bytes),
        ):
            trained = component == "weights" or weight.id in graph.gradients
            if component in settings.off_chip and trained:
                split = shards if component in settings.off_chip_sharded else 1
                add(ipu, weight.name, component, math.ceil(size / split))
    if "stashes" in settings.off_chip and settings.execution == "pipelined":
        for stage in stages:
            for buffer in _stashes(graph, [stage], settings):
                found.setdefault(stage.ipu, []).append(buffer)
    return found


def streaming_overflows(
    weights: WeightMemory, homes: Mapping[int, int], stages: Sequence[Stage], target: Target
) -> tuple[Overflow, ...]:
    """The M2000s whose streaming memory is too small for what their IPUs keep off the chip.

    IPU i of replica r is number r * (IPUs of a replica) + i; each M2000 has `ipus_per_m2000` consecutive
    IPUs.
    """
    of_ipu = streaming_buffers(weights, homes, stages)
    num_ipus = weights.graph.num_ipus
    total_ipus = num_ipus * weights.settings.replicas
    overflows: list[Overflow] = []
    for first in range(0, total_ipus, target.ipus_per_m2000):
        ipus = range(first, min(first + target.ipus_per_m2000, total_ipus))
        buffers = [buffer for ipu in ipus for buffer in of_ipu.get(ipu % num_ipus, ())]
        capacity_bytes = int(target.streaming_memory_bytes)
        if sum(buffer.bytes for buffer in buffers) > capacity_bytes:
            holder = next(ipu % num_ipus for ipu in ipus if of_ipu.get(ipu % num_ipus))
            m2000 = first // target.ipus_per_m2000
            overflows.append(overflow(holder, "always", buffers, capacity_bytes, m2000))
    return tuple(overflows)


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of each IPU of a replica.

    :param overflows: memories that are too small, an IPU's or an M2000's streaming memory; empty if all fit.
    :param numbers: names of the constants and facts that it depends on, besides those of operations' cycles.
    :param largest_buffers, peak_moments: see `Details`.
    """

    ipus: tuple[IpuMemory, ...]
    liveness: tuple[LivenessPoint, ...]
    overflows: tuple[Overflow, ...]
    numbers: frozenset[str]
    largest_buffers: tuple[tuple[int, Buffer], ...] = ()
    peak_moments: Mapping[int, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not self.overflows


@dataclass(frozen=True)
class IpuPlan:
    """Buffers that are always live on an IPU, and those of a cycle of the main phase and of the update."""

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
    only: Collection[int] | None = None,
) -> MemoryEstimate:
    """Memory of every IPU of one replica, or of those in `only`.

    `op_cost`, `sizes`: costs and tensor sizes, if known already.
    """
    op_cost, sizes = op_cost or _cached(graph, settings, target), sizes or materialised(graph)
    wanted = range(graph.num_ipus) if only is None else sorted(only)
    plans = plans_of(graph, stages, settings, constants, op_cost, sizes, wanted)
    ipus: list[IpuMemory] = []
    points: list[LivenessPoint] = []
    overflows: list[Overflow] = []
    largest: list[tuple[int, Buffer]] = []
    moments: dict[int, str] = {}
    for ipu, plan in zip(wanted, plans, strict=True):
        always = _by_component(plan.always)
        live = plan.timeline.live_bytes()
        totals = sum(always.values()) + live.sum(axis=0)
        worst = int(totals.argmax()) if totals.size else None
        at_worst = plan.always if worst is None else (*plan.always, *plan.timeline.live_at(worst))
        tile = _fullest_tile(always, live, target, constants)
        memory = _ipu_memory(ipu, always, _by_component(at_worst), tile, target)
        ipus.append(memory)
        largest += [(ipu, buffer) for buffer in _largest(at_worst)]
        if worst is not None:
            moments[ipu] = str(plan.timeline.events[worst])
        points += [
            LivenessPoint(ipu, event.phase, event.label, int(total))
            for event, total in zip(plan.timeline.events, totals, strict=True)
        ]
        if memory.fullest_tile_bytes > memory.tile_capacity_bytes:
            moment = "always" if worst is None else str(plan.timeline.events[worst])
            overflows.append(
                _overflow_of_ipu(ipu, moment, at_worst, memory.usable_bytes, memory.capacity_bytes)
            )
    weights = WeightMemory(graph, sizes, settings, constants)
    overflows += streaming_overflows(weights, homes(graph), stages, target)
    return MemoryEstimate(
        tuple(ipus),
        tuple(points),
        tuple(overflows),
        _numbers(graph, settings, sizes, op_cost),
        tuple(largest),
        moments,
    )


def _largest(buffers: Iterable[Buffer]) -> list[Buffer]:
    """The largest few buffers of each component, largest first."""
    of_component: dict[str, list[Buffer]] = {}
    for buffer in buffers:
        of_component.setdefault(buffer.component, []).append(buffer)
    return [
        buffer
        for found in of_component.values()
        for buffer in sorted(found, key=lambda each: -each.bytes)[:_LARGEST_OF_A_COMPONENT]
    ]


def _numbers(
    graph: Graph, settings: Settings, sizes: Materialised, op_cost: Callable[[Op], OpCost]
) -> frozenset[str]:
    """Names of the numbers that affect this program's memory; those of collectives only with replicas."""
    names = {"tile_imbalance", "code_bytes_fixed", "bytes_per_tile", "tiles_per_ipu"}
    optimizer, replicated = settings.optimizer, bool(settings.replicas > 1 and graph.gradients)
    state = bool(optimizer and optimizer.state_bytes_per_element and graph.gradients)
    off_chip = (state and optimizer and optimizer.location == "off_chip") or settings.off_chip
    ops = [op for op in graph.ops if not is_view(op, graph)]
    code = ("code_bytes_per_distinct_operation", "code_bytes_per_call", "exchange_code_bytes_per_compute_set")
    for acts, numbers in (
        (ops, code),
        (any(op_cost(op).kind in PRODUCTS for op in ops), ("code_compute_sets_of_a_product",)),
        (replicated, ("exchange_code_bytes_per_collective",)),
        (graph.inputs or graph.outputs, ("stream_buffers_per_tensor",)),
        (settings.shards > 1 and graph.gradients, ("sharding_threshold_elements",)),
        (state, ("update_bytes_per_element",)),
        (off_chip, ("streaming_memory_bytes",)),
        (off_chip and settings.replicas * graph.num_ipus > 1, ("ipus_per_m2000",)),
        # Sums that the accumulator replaces take no time, but have code.
        (
            sizes.sums,
            [vertices()[row_of(graph.ops[index].name).rule].compute_sets_name for index in sizes.sums],
        ),
    ):
        if acts:
            names.update(numbers)
    return frozenset(names)


def _ipu_memory(
    ipu: int,
    always: Mapping[str, int],
    at_worst: Mapping[str, int],
    tile: Mapping[str, int],
    target: Target,
) -> IpuMemory:
    return IpuMemory(
        ipu=ipu,
        capacity_bytes=target.bytes_per_ipu,
        always_live_bytes=sum(always.values()),
        peak_bytes=sum(at_worst.values()),
        components=at_worst,
        always_live_components=always,
        fullest_tile_bytes=sum(tile.values()),
        tile_capacity_bytes=target.bytes_per_tile,
        fullest_tile_components=tile,
    )


def _fullest_tile(
    always: Mapping[str, int], live: NDArray[np.int64], target: Target, constants: MemoryConstants
) -> dict[str, int]:
    """Bytes on the fullest tile by component, when it is fullest.

    A plan gives the working set of the tile that has most of the product. Every tile has the same code. All
    else is spread over the tiles, unevenly.

    :param live: bytes [component in the order of COMPONENTS, event] of what isn't always live.
    """
    spread = np.array([1 if name in ASSUMED_COMPONENTS else constants.tile_imbalance for name in COMPONENTS])
    sizes = np.array([always[name] for name in COMPONENTS])
    if live.shape[1]:
        sizes = sizes + live[:, (spread @ live).argmax()]
    on_tile = np.ceil(sizes * spread / target.tiles_per_ipu)
    return {name: int(size) for name, size in zip(COMPONENTS, on_tile, strict=True)}


def plans_of(
    graph: Graph,
    stages: Sequence[Stage],
    settings: Settings,
    constants: MemoryConstants,
    op_cost: Callable[[Op], OpCost],
    sizes: Materialised | None = None,
    only: Sequence[int] | None = None,
) -> list[IpuPlan]:
    """The buffers of each IPU, or of those in `only`."""
    home, sizes = homes(graph), sizes or materialised(graph)
    crossing = crossing_tensors(graph)
    weights = WeightMemory(graph, sizes, settings, constants)
    streams = _streams(graph, constants)
    pipelined = settings.execution == "pipelined"
    plans: list[IpuPlan] = []
    for ipu in range(graph.num_ipus) if only is None else only:
        on_ipu = [stage for stage in stages if stage.ipu == ipu]
        ops = [op for stage in on_ipu for op in (*stage.forward, *stage.recompute, *stage.backward)]
        updated = [
            weight for weight in graph.parameters if home[weight.id] == ipu and weight.id in graph.gradients
        ]
        always = [
            *weights.kept(ipu, home),
            *(_stashes(graph, on_ipu, settings) if pipelined else ()),
            *streams.get(ipu, ()),
            *code(graph, ops, weights.collectives(updated), settings.replicas, op_cost, constants),
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
    """Buffers of inputs from the host, on the IPU of their first use, and of outputs to it."""
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
    """Costs of operations, cached by shape and IPU."""
    known: dict[tuple[object, ...], OpCost] = {}

    def op_cost(op: Op) -> OpCost:
        key = (op.ipu, op.phase, *outline_key(op, graph))
        if key not in known:
            known[key] = cost_of(op, graph, settings, target)
        return known[key]

    return op_cost
