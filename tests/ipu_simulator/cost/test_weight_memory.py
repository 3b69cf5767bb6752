"""Memory of weights, computed by hand: two of 128 x 128 and one of 16 x 128 on one IPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ipu_simulator.cost.aliases import materialised
from ipu_simulator.cost.constants import memory_constants
from ipu_simulator.cost.memory import WeightMemory, homes
from ipu_simulator.cost.settings import OptimizerSettings
from ipu_simulator.graph.ir import Graph

from tests.ipu_simulator.cost.graphs import Builder, settings

LARGE, SMALL = 128 * 128, 16 * 128  # elements: above and below the threshold of 8192 for sharding


def three_weights() -> Graph:
    builder = Builder((0,))
    x = builder.tensor([8, 128], "input", "input/0")
    for name, shape in (("a.weight", (128, 128)), ("b.weight", (128, 128)), ("c.weight", (16, 128))):
        w, y, d_w = builder.tensor(shape, "parameter", name), builder.tensor([8, 128]), builder.tensor(shape)
        builder.op("mm", [x, w], [y])
        builder.op("mm", [x, y], [d_w], "backward")
        builder.gradients[w] = d_w
    return builder.graph([x])


def kept_and_updated(optimizer: OptimizerSettings | None, replicas: int) -> tuple[dict[str, int], list[int]]:
    graph = three_weights()
    constants = replace(memory_constants(), update_bytes_per_element=8.0, sharding_threshold_elements=8192.0)
    memory = WeightMemory(
        graph, materialised(graph), settings(1, optimizer=optimizer, replicas=replicas), constants
    )
    kept: dict[str, int] = {}
    for buffer in memory.kept(0, homes(graph)):
        kept[buffer.component] = kept.get(buffer.component, 0) + buffer.bytes
    return kept, memory.update(0, homes(graph)).live_bytes().sum(axis=0).tolist()


def test_on_chip_state_stays_and_only_the_update_comes_and_goes():
    kept, updated = kept_and_updated(OptimizerSettings("adam", (4, 4)), 1)
    elements = 2 * LARGE + SMALL
    assert kept == {
        "weights": 2 * elements,
        "gradient_accumulators": 2 * elements,
        "optimizer_state": 8 * elements,
    }
    assert updated == [8 * LARGE, 8 * LARGE, 8 * SMALL]


def test_off_chip_state_comes_with_its_weight():
    kept, updated = kept_and_updated(OptimizerSettings("adam", (2, 4), "off_chip"), 1)
    assert "optimizer_state" not in kept
    assert updated == [(8 + 6) * LARGE, (8 + 6) * LARGE, (8 + 6) * SMALL]


def test_sharding_divides_large_weights_alone():
    kept, updated = kept_and_updated(OptimizerSettings("lamb", (4, 4), sharded=True), 4)
    assert kept["optimizer_state"] == 8 * (2 * LARGE // 4 + SMALL)
    # the update of the shard, the reduced gradient, the gathered weight
    of_large = 8 * LARGE // 4 + 2 * LARGE // 4 + 2 * LARGE
    assert updated == [of_large, of_large, 8 * SMALL]


def test_one_replica_has_nothing_to_share():
    assert kept_and_updated(OptimizerSettings("lamb", (4, 4), sharded=True), 1) == kept_and_updated(
        OptimizerSettings("lamb", (4, 4)), 1
    )


def test_sgd_without_momentum_takes_nothing_beside_the_accumulators():
    kept, updated = kept_and_updated(OptimizerSettings("sgd", ()), 1)
    assert set(kept) == {"weights", "gradient_accumulators"} and updated == [0, 0, 0]


def test_a_serialised_matmul_updates_its_weight_slice_by_slice():
    builder = Builder((0,))
    x = builder.tensor([8, 128], "input", "input/0")
    w, y, d_w = (
        builder.tensor([128, 128], "parameter", "w"),
        builder.tensor([8, 128]),
        builder.tensor([128, 128]),
    )
    builder.op("mm", [x, w], [y], serialization=("OutputChannels", 4))
    builder.op("mm", [x, y], [d_w], "backward")
    builder.gradients[w] = d_w
    graph = builder.graph([x])
    optimizer = OptimizerSettings("adam", (4, 4), "off_chip")
    memory = WeightMemory(graph, materialised(graph), settings(1, optimizer=optimizer), memory_constants())
    whole = memory.update_buffers(graph.tensors[w], 1)
    sliced = memory.update_buffers(graph.tensors[w], 4)
    assert [4 * buffer.bytes for buffer in sliced] == [buffer.bytes for buffer in whole]
    assert memory.update(0, homes(graph)).live_bytes().sum() == sum(buffer.bytes for buffer in sliced)


def test_a_tied_weight_stands_once_where_it_is_used_first():
    builder = Builder((0, 1, 0))
    x = builder.tensor([8], "input", "input/0", dtype="int32")
    w = builder.tensor([128, 16], "parameter", "w")
    y, z = builder.tensor([8, 16]), builder.tensor([8, 128])
    builder.op("embedding", [w, x], [y])
    builder.stage = 1
    builder.op("mm", [y, w], [z])
    assert homes(builder.graph([x])) == {w: 0}


@pytest.mark.parametrize("bytes_per_element", [2, 4])
def test_accumulators_have_a_type_of_their_own(bytes_per_element):
    graph = three_weights()
    program = settings(1, accumulator_bytes=bytes_per_element)
    kept = WeightMemory(graph, materialised(graph), program, memory_constants()).kept(0, homes(graph))
    accumulators = [buffer.bytes for buffer in kept if buffer.component == "gradient_accumulators"]
    assert accumulators == [bytes_per_element * elements for elements in (LARGE, LARGE, SMALL)]
