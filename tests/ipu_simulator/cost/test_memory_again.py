"""Memory by IPU and component, computed a second time: from the graph's tensors and operations, one total per
component, without the buffers, homes and timelines of the memory model. Code and exchange code included.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import pytest
from ipu_simulator.cost.aliases import materialised
from ipu_simulator.cost.constants import memory_constants
from ipu_simulator.cost.matmul import Product, plan
from ipu_simulator.cost.memory import homes, memory_of, overflow, plans_of
from ipu_simulator.cost.ops import PRODUCTS, op_cost
from ipu_simulator.cost.settings import OptimizerSettings
from ipu_simulator.cost.verdict import Buffer
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import stages_of

from tests.ipu_simulator.cost.graphs import Builder, chain, settings

CONSTANTS = memory_constants()
MACHINE = replace(target("pod4"), tiles_per_ipu=16)
# IPUs differ in the number, the shapes and the sizes of their weights, operations and checkpoints.
WIDTHS = [[64, 96], [128, 128, 160, 192], [96], [32, 48]]


def _root(graph, tensor):
    while tensor.base is not None:
        tensor = graph.tensors[tensor.base]
    return tensor


def _first_ipus(graph) -> dict[int, int]:
    """The IPU of the first operation that touches a tensor's memory."""
    first: dict[int, int] = {}
    for op in graph.ops:
        for number in (*op.inputs, *op.outputs):
            first.setdefault(_root(graph, graph.tensors[number]).id, op.ipu)
    return first


def _key(graph, op) -> tuple[object, ...]:
    of_tensors = [(graph.tensors[n].shape, graph.tensors[n].dtype) for n in op.inputs]
    of_results = [(graph.tensors[n].shape, graph.tensors[n].dtype) for n in op.outputs]
    return (op.name, tuple(of_tensors), tuple(of_results), str(sorted(op.attributes.items())))


def always_live(graph, program, ipu: int, constants=CONSTANTS) -> dict[str, int]:
    """Bytes of each component that are always live on an IPU."""
    place, stages = _first_ipus(graph), stages_of(graph, program)
    mine = [w for w in graph.tensors if w.role == "parameter" and place[w.id] == ipu]
    trained = [weight for weight in mine if weight.id in graph.gradients]
    optimizer = program.optimizer
    found = {
        "weights": sum(weight.bytes for weight in mine),
        "gradient_accumulators": sum(weight.elements for weight in trained) * program.accumulator_bytes,
        "optimizer_state": 0,
        "stashes": 0,
    }
    if optimizer.location == "on_chip":
        for weight in trained:
            shard = weight.elements
            if weight.elements >= constants.sharding_threshold_elements:
                shard = math.ceil(weight.elements / program.shards)
            found["optimizer_state"] += shard * sum(optimizer.state_bytes_per_element)
    last = len(stages) - 1
    for stage in stages:
        if stage.ipu == ipu and stage.index < last:
            kept = sum(graph.tensors[number].bytes for number in stage.stashed)
            found["stashes"] += kept * (2 * (last - stage.index) + 1)
    streams = {n: graph.tensors[n] for n in (*graph.inputs, *graph.outputs)}
    found["stream_buffers"] = sum(
        tensor.bytes for n, tensor in streams.items() if place[_root(graph, tensor).id] == ipu
    )

    calls = [op for op in graph.ops if op.ipu == ipu]
    calls += [op for stage in stages if stage.ipu == ipu for op in stage.recompute]
    calls = [op for op in calls if any(graph.tensors[number].base is None for number in op.outputs)]
    by_key = {_key(graph, op): op for op in calls}
    compute_sets = 0.0
    for op in by_key.values():
        cost = op_cost(op, graph, program, MACHINE)
        most = constants.code_compute_sets_of_a_product if cost.kind in PRODUCTS else math.inf
        compute_sets += min(cost.compute_sets, most)
    found["code"] = round(constants.code_bytes_fixed)
    found["code"] += round(constants.code_bytes_per_distinct_operation * len(by_key))
    found["code"] += round(constants.code_bytes_per_call * len(calls))
    # Weights that are sharded have a collective each, the others one together.
    sharding = program.shards > 1
    alone = [w for w in trained if sharding and w.elements >= constants.sharding_threshold_elements]
    collectives = len({w.shape for w in alone}) + (1 if len(alone) < len(trained) else 0)
    doublings = math.log2(program.replicas)
    found["exchange_code"] = round(constants.exchange_code_bytes_per_compute_set * round(compute_sets))
    found["exchange_code"] += round(constants.exchange_code_bytes_per_collective * doublings * collectives)
    return found


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("location", ["on_chip", "off_chip"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("stage_ipus", [(0, 1, 2, 0), (0, 1, 2, 3), (2, 1, 0, 2)])
def test_always_live_memory_by_ipu_and_component(replicas, location, sharded, stage_ipus) -> None:
    graph = chain(stage_ipus, WIDTHS)
    optimizer = OptimizerSettings("adam", (4, 4), location, sharded and replicas > 1)
    program = settings(4, replicas=replicas, optimizer=optimizer)
    found = memory_of(graph, stages_of(graph, program), program, MACHINE, CONSTANTS)
    sums: dict[str, int] = defaultdict(int)
    for memory in found.ipus:
        expected = always_live(graph, program, memory.ipu)
        given = {name: size for name, size in memory.always_live_components.items() if name in expected}
        assert given == expected, f"IPU {memory.ipu}"
        others = memory.always_live_components.keys() - expected.keys()
        assert not any(memory.always_live_components[name] for name in others)
        for name, size in given.items():
            sums[name] += size
    assert sums["weights"] == sum(weight.bytes for weight in graph.parameters)
    # Weights that differ between IPUs, so that one IPU's can't pass as another's.
    assert len({memory.always_live_components["exchange_code"] for memory in found.ipus}) > 1


def test_a_product_counts_few_compute_sets_and_another_operation_all() -> None:
    constants = replace(CONSTANTS, code_compute_sets_of_a_product=1)
    graph, program = chain((0, 1, 2, 3), WIDTHS), settings(4)
    found = memory_of(graph, stages_of(graph, program), program, MACHINE, constants)
    for memory in found.ipus:
        expected = always_live(graph, program, memory.ipu, constants)
        assert memory.always_live_components["exchange_code"] == expected["exchange_code"]
        assert expected != always_live(graph, program, memory.ipu)


def test_a_weight_that_nothing_uses_is_on_the_first_ipu() -> None:
    builder = Builder((0, 1))
    x, unused = builder.tensor([8, 16], "input", "x"), builder.tensor([64, 64], "parameter", "unused")
    y, z = builder.tensor([8, 16]), builder.tensor([8, 16])
    builder.op("relu", [x], [y])
    builder.stage = 1
    builder.op("relu", [y], [z])
    graph = builder.graph([x], [z])
    assert homes(graph)[unused] == 0
    found = memory_of(graph, stages_of(graph, settings(2)), settings(2), MACHINE, CONSTANTS)
    assert [memory.components["weights"] for memory in found.ipus] == [64 * 64 * 2, 0]


def test_buffers_that_fill_a_memory_exactly_do_not_exceed_it() -> None:
    sizes = [5, 5, 1]
    buffers = [Buffer(f"buffer {size}", "weights", "", size) for size in sizes]
    assert [buffer.bytes for buffer in overflow(0, "always", buffers, 10).buffers] == sizes
    assert [buffer.bytes for buffer in overflow(0, "always", buffers, 9).buffers] == [5, 5]


def test_an_ipu_lacks_what_exceeds_the_memory_that_an_uneven_filling_leaves() -> None:
    graph, program = chain((0, 1, 2, 3), WIDTHS), settings(4)
    small = replace(MACHINE, bytes_per_tile=1_000_000)
    found = memory_of(graph, stages_of(graph, program), program, small, CONSTANTS)
    assert len(found.overflows) == 4
    for memory, lacking in zip(found.ipus, found.overflows, strict=True):
        usable_bytes = int(memory.peak_bytes * 1_000_000 / memory.fullest_tile_bytes)
        assert lacking.over_bytes == pytest.approx(memory.peak_bytes - usable_bytes, abs=1)


@pytest.mark.parametrize("tiles", [16, 7])
@pytest.mark.parametrize("replicas", [1, 4])
def test_the_fullest_tile_is_that_of_tensors_laid_on_tiles_one_by_one(tiles, replicas) -> None:
    """Code and working sets are on every tile; other tensors lie byte by byte on one tile after another."""
    graph, program = chain((0, 1, 2, 0), WIDTHS), settings(4, replicas=replicas)
    machine = replace(MACHINE, tiles_per_ipu=tiles)
    stages = stages_of(graph, program)

    def cost(op):
        return op_cost(op, graph, program, machine)

    found = memory_of(graph, stages, program, machine, CONSTANTS)
    for memory, made in zip(
        found.ipus, plans_of(graph, stages, program, CONSTANTS, cost, materialised(graph)), strict=True
    ):
        fullest = []
        for event in range(len(made.timeline.events)):
            held = [0.0] * tiles
            for buffer in (*made.always, *made.timeline.live_at(event)):
                if buffer.component in ("code", "exchange_code", "matmul_working_set"):
                    shares = [buffer.bytes / tiles] * tiles
                else:
                    shares = [
                        len(range(tile, buffer.bytes, tiles)) * CONSTANTS.tile_imbalance
                        for tile in range(tiles)
                    ]
                held = [before + share for before, share in zip(held, shares, strict=True)]
            fullest.append(max(held))
        # Tensors that don't divide by the number of tiles have one byte more on the first ones.
        buffers = len(made.always) + len(made.timeline.lifetimes)
        assert 0 <= max(fullest) + len(memory.components) - memory.fullest_tile_bytes <= buffers + 20


def test_a_working_set_is_on_its_tile_once_and_all_else_is_uneven() -> None:
    builder = Builder((0,))
    x, weight = builder.tensor([64, 96], "input", "x"), builder.tensor([96, 128], "parameter", "weight")
    y = builder.tensor([64, 128])
    builder.op("mm", [x, weight], [y])
    graph = builder.graph([x], [y])
    program = settings(1)
    (memory,) = memory_of(graph, stages_of(graph, program), program, MACHINE, CONSTANTS).ipus
    made = plan(Product(1, 64, 96, 128, resident="right"), MACHINE, program.matmul_proportions[0])
    assert memory.fullest_tile_components["matmul_working_set"] == made.temporary_bytes
    spread = CONSTANTS.tile_imbalance / 16
    assert memory.fullest_tile_components["weights"] == math.ceil(96 * 128 * 2 * spread)
    assert memory.fullest_tile_components["code"] == math.ceil(memory.components["code"] / 16)


def test_stashes_are_named_after_what_makes_them() -> None:
    graph, program = chain((0, 1, 2, 3), WIDTHS), settings(4)
    found = memory_of(graph, stages_of(graph, program), program, MACHINE, CONSTANTS)
    stashes = {buffer.name for ipu, buffer in found.largest_buffers if buffer.component == "stashes"}
    assert "7 x input/0 [8, 64]" in stashes
    assert any(name.startswith("5 x gelu [8, ") for name in stashes)
