"""What is copied into another layout around convolutions, and norms that become part of them."""

from __future__ import annotations

import pytest
from ipu_simulator.cost.aliases import folded_into, materialised
from ipu_simulator.cost.layouts import comes_in_channel_order, leaves_channel_order
from ipu_simulator.cost.ops import op_cost
from ipu_simulator.environment import target

from tests.ipu_simulator.cost.graphs import Builder, settings

CHIP = target("pod16")
IMAGE, OTHER = (2, 32, 8, 8), (2, 8, 8, 32)


def network(after=("native_batch_norm", "relu"), training=False, bias=False):
    """input -> convolution -> these operations -> convolution; the results of all, in order."""
    builder = Builder((0,))
    source = builder.tensor(IMAGE, "input", "images")
    weights = [builder.tensor((32, 32, 3, 3), "parameter", name) for name in ("first", "second")]
    scale = builder.tensor((32,), "parameter", "scale")
    made = [builder.tensor(IMAGE)]
    biased = (scale,) if bias else ()
    builder.op("convolution", [source, weights[0], *biased], made[:1])
    for name in after:
        made.append(builder.tensor(IMAGE))
        norm = name == "native_batch_norm"
        builder.op(name, [made[-2], scale] if norm else made[-2:-1], made[-1:], training=training)
    made.append(builder.tensor(IMAGE))
    builder.op("convolution", [made[-2], weights[1]], made[-1:])
    return builder, source, made


def costs(builder, outputs=()):
    graph = builder.graph(outputs=outputs)
    return graph, [op_cost(op, graph, settings(1), CHIP) for op in graph.ops]


def test_activations_stay_in_the_order_of_convolutions_from_one_to_the_next():
    builder, source, made = network()
    graph, found = costs(builder, outputs=[made[-1]])
    assert not comes_in_channel_order(source, graph) and comes_in_channel_order(made[-2], graph)
    elements = 2 * 32 * 8 * 8
    # In at the first, out at the last.
    assert [cost.rearranged_elements for cost in found] == [elements, 0, 0, elements]


@pytest.mark.parametrize("name, leaves", [("permute", True), ("clone", True), ("relu", False), ("mm", True)])
def test_a_result_is_copied_where_an_operation_needs_another_order(name, leaves):
    builder, _, made = network(())
    view = name == "permute"
    used = builder.tensor(OTHER if view else IMAGE, base=made[-1] if view else None)
    builder.op(name, made[-1:], [used])
    graph = builder.graph()
    assert leaves_channel_order(made[-1], graph) is leaves
    assert not leaves_channel_order(made[0], graph)  # the second convolution takes it


def test_a_transposed_input_is_copied_as_before():
    builder, _, made = network(())
    moved = builder.tensor(OTHER, base=made[-1])
    builder.op("permute", made[-1:], [moved])
    copied = builder.tensor(IMAGE)
    builder.op("add", [moved, moved], [copied])
    graph = builder.graph()
    assert not comes_in_channel_order(moved, graph) and not comes_in_channel_order(copied, graph)


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_with_fixed_statistics_is_part_of_its_convolution(bias):
    builder, _, made = network(bias=bias)
    graph, found = costs(builder)
    norm, on_a_tile = graph.ops[1], -(-2 * 32 * 8 * 8 // CHIP.tiles_per_ipu)
    assert folded_into(norm, graph) is graph.ops[0]
    assert found[1].vertex_cycles == (0 if bias else 0.75 * on_a_tile)
    assert found[1].compute_sets == (0 if bias else 1)
    assert materialised(graph).bytes[made[0]] == 0


def test_a_norm_elsewhere_multiplies_and_adds_and_in_training_costs_as_before():
    builder, _, made = network()
    other = builder.tensor(IMAGE)
    builder.op("add", [made[0], made[1]], [other])  # the convolution's result is needed beside the norm
    graph, found = costs(builder)
    on_a_tile = -(-2 * 32 * 8 * 8 // CHIP.tiles_per_ipu)
    assert folded_into(graph.ops[1], graph) is None and made[0] not in materialised(graph).bytes
    assert (found[1].vertex_cycles, found[1].compute_sets) == (1.5 * on_a_tile, 2)
    builder, _, made = network()
    assert folded_into(builder.ops[1], builder.graph([], made[:1])) is None  # and here the host needs it
    graph, found = costs(network(training=True)[0])
    assert folded_into(graph.ops[1], graph) is None
    assert (found[1].vertex_cycles, found[1].compute_sets) == (4 * on_a_tile, 8)
