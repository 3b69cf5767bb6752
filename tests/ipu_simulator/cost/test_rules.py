"""Cost rules, on graphs with a single operation."""

from __future__ import annotations

import math

import poptorch
import pytest
import torch
from ipu_simulator.cost.matmul import Product, plan
from ipu_simulator.cost.ops import op_cost
from ipu_simulator.cost.settings import Settings
from ipu_simulator.cost.time import load_of
from ipu_simulator.cost.vertices import operation_constants, vertices
from ipu_simulator.environment import target
from ipu_simulator.graph.ir import Graph, Op, Tensor
from ipu_simulator.op_table import content, rows
from poptorch import simulator

CHIP = target("pod16")
SETTINGS = Settings(
    micro_batch_size=1,
    gradient_accumulation=1,
    replicas=1,
    device_iterations=1,
    matmul_proportions=(0.2, 0.6),
    half_partials=True,
    execution="sharded",
    recompute=False,
    optimizer=None,
)


def graph_of(
    name, inputs, outputs, *, phase="forward", dtype="float16", integers=(), roles=(), ipu=0, **attributes
):
    """A graph of one operation.

    Inputs are activations unless `roles` says otherwise; `integers` lists integer inputs.
    """
    roles = [*roles, *["activation"] * len(inputs)]
    tensors = [
        Tensor(
            number,
            tuple(shape),
            "int32" if number in integers else dtype,
            roles[number] if number < len(inputs) else "activation",
        )
        for number, shape in enumerate([*inputs, *outputs])
    ]
    first = len(inputs)
    op = Op(
        0, name, phase, tuple(range(first)), tuple(range(first, len(tensors))), "m", 0, ipu, 0, attributes
    )
    return Graph(tuple(tensors), (op,), {}, frozenset(), (0, 1), (), ())


def cost(*arguments, **keywords):
    graph = graph_of(*arguments, **keywords)
    return op_cost(graph.ops[0], graph, SETTINGS, CHIP)


def test_a_matmul_is_planned_under_the_proportion_of_its_ipu():
    for ipu, proportion in ((0, 0.2), (1, 0.6)):
        found = cost("mm", [(1024, 1024), (1024, 4096)], [(1024, 4096)], ipu=ipu)
        made = plan(Product(1, 1024, 1024, 4096, resident="neither"), CHIP, proportion)
        assert found.matmul_cycles == made.cycles
        assert found.working_set_bytes == made.temporary_bytes * CHIP.tiles_per_ipu
        assert found.flops == 2 * 1024 * 1024 * 4096
        assert found.compute_sets == made.serial_splits * (2 + (made.split_k > 1))
    own = cost("mm", [(1024, 1024), (1024, 4096)], [(1024, 4096)], available_memory_proportion=0.1)
    assert own.matmul_cycles == plan(Product(1, 1024, 1024, 4096, resident="neither"), CHIP, 0.1).cycles


def test_a_bias_is_a_pass_of_its_own():
    shapes = [(512, 768), (768, 768)], [(512, 768)]
    plain, biased = cost("mm", *shapes), cost("addmm", [(768,), *shapes[0]], shapes[1])
    assert biased.matmul_cycles == plain.matmul_cycles
    assert biased.vertex_cycles == 0.75 * math.ceil(512 * 768 / 1472)
    assert biased.compute_sets == plain.compute_sets + 1


def test_float32_takes_longer():
    shapes = [(512, 768), (768, 768)], [(512, 768)]
    assert cost("mm", *shapes, dtype="float32").matmul_cycles > 2 * cost("mm", *shapes).matmul_cycles


def test_batches_are_groups():
    found = cost("bmm", [(96, 128, 64), (96, 64, 128)], [(96, 128, 128)])
    assert found.matmul_cycles == plan(Product(96, 128, 64, 128, resident="neither"), CHIP, 0.2).cycles
    assert found.flops == 2 * 96 * 128 * 64 * 128


def test_vectors_are_matmuls_too():
    assert cost("mv", [(300, 200), (200,)], [(300,)]).flops == 2 * 300 * 200
    assert cost("dot", [(200,), (200,)], [()]).flops == 2 * 200


def test_what_is_rearranged_for_gradients():
    shapes = [(512, 768), (768, 3072)], [(512, 3072)]
    assert cost("mm", *shapes, roles=["activation", "parameter"]).rearranged_elements == 0
    of_input = cost("mm", *shapes, phase="backward", roles=["activation", "parameter"])
    assert of_input.rearranged_elements == 768 * 3072
    of_weights = cost("mm", [(768, 512), (512, 3072)], [(768, 3072)], phase="backward")
    assert of_weights.rearranged_elements == 512 * (768 + 3072)


@pytest.mark.parametrize(
    ("columns", "dtype", "factor"),
    [
        (200, "float16", 1),
        (198, "float16", 7.1),
        (197, "float16", 11.7),
        (198, "float32", 1),
        (197, "float32", 7.1),
    ],
)
def test_odd_rows_are_rearranged_in_narrow_atoms(columns, dtype, factor):
    """8, 4 or 2 bytes at a time: 451, 3,200 or 5,271 cycles for 1,024 bytes (poplin/ConvPlan.cpp)."""
    shape = (2, 12, 64, columns)
    for found in (
        cost("clone", [shape], [shape], dtype=dtype),
        cost("bmm", [(24, 64, columns), (24, columns, 64)], [(24, 64, 64)], phase="backward", dtype=dtype),
    ):
        elements = 2 * 12 * 64 * columns
        assert found.rearranged_elements in (elements, 2 * elements)
        assert found.slow_elements == pytest.approx((factor - 1) * elements)
        load = load_of(found, CHIP)
        assert (
            load.rearranged_elements * CHIP.tiles_per_ipu == found.rearranged_elements + found.slow_elements
        )


def test_allocations_cost_nothing():
    for name in ("empty", "empty_strided", "new_empty_strided", "new_empty"):
        found = cost(name, [(1472, 10)], [(1472, 10)])
        assert found.known and not found.compute_sets and not found.vertex_cycles, name


def test_a_table_of_two_rows_costs_no_more_than_a_large_one():
    """Tiles that a small table leaves over take some of the indices each."""
    for name, others in (("embedding", (8, 128)), ("embedding_dense_backward", (8, 128))):
        small, large = (
            cost(name, [(rows, 768), others], [(8, 128, 768)], integers=(1,)).vertex_cycles
            if name == "embedding"
            else cost(
                name, [(8, 128, 768), others], [(rows, 768)], phase="backward", integers=(1,)
            ).vertex_cycles
            for rows in (2, 30522)
        )
        assert small <= large, name


def test_views_cost_nothing():
    tensors = (Tensor(0, (8, 4), "float16", "activation"), Tensor(1, (4, 8), "float16", "activation", base=0))
    op = Op(0, "t", "forward", (0,), (1,), "m", 0, 0, 0)
    graph = Graph(tensors, (op,), {}, frozenset(), (0,), (), ())
    found = op_cost(op, graph, SETTINGS, CHIP)
    assert found.kind == "view" and found.compute_sets == 0 and found.vertex_cycles == 0 and found.known


@pytest.mark.parametrize(("dtype", "cycles"), [("float16", 0.75), ("float32", 1.5)])
def test_an_addition(dtype, cycles):
    found = cost("add", [(1472, 10), (10,)], [(1472, 10)], dtype=dtype)
    assert (found.vertex_cycles, found.compute_sets, found.kind) == (10 * cycles, 1, "elementwise")


def test_a_reduction_counts_what_it_reads():
    assert cost("sum", [(1472, 100)], [(100,)]).vertex_cycles == 0.5 * 100


def test_the_fullest_tile_counts():
    assert cost("add", [(1473,)], [(1473,)]).vertex_cycles == 2 * 0.75


def test_gelu_costs_the_tanh_form_whichever_is_asked_for():
    asked = [
        cost("gelu", [(1472, 4)], [(1472, 4)], approximate=approximate) for approximate in ("none", "tanh")
    ]
    assert asked[0] == asked[1] and asked[0].vertex_cycles == 4 * 1.25


def test_an_unknown_pointwise_operation_is_bounded_by_the_dearest_vertex():
    found = cost("my_own_thing", [(1472, 10)], [(1472, 10)], pointwise=True)
    assert found.rule == "bound" and not found.known
    bound = operation_constants().unknown_cycles
    assert found.vertex_cycles == 10 * bound and found.compute_sets == 1
    assert all(vertex.half_cycles <= bound for vertex in vertices().values())


@pytest.mark.parametrize("name", ["linalg_svd", "_linalg_eigh", "linalg_inv_ex", "cholesky", "my_own_thing"])
def test_any_other_unknown_operation_costs_no_less_than_a_factorisation_on_one_worker(name):
    """A singular value decomposition takes some 22 n^3 operations, an eigenvalue decomposition 9 n^3."""
    for side in (8, 64, 512):
        found = cost(name, [(side, side)], [(side, side)], dtype="float32")
        assert not found.known and found.vertex_cycles >= 22 * side**3
        assert "worker_threads_per_tile" in found.numbers


def test_a_captured_operation_is_pointwise_if_pytorch_says_so():
    class Model(torch.nn.Module):
        def forward(self, values):
            return torch.erfc(values), torch.cdist(values, values)

    graph = simulator.capture(Model(), (torch.empty(16, 16),), {}, poptorch.Options(), training=False)
    of_name = {op.name: op for op in graph.ops}
    found = {name: op_cost(op, graph, SETTINGS, CHIP) for name, op in of_name.items()}
    assert found["erfc"].vertex_cycles == 16 and of_name["erfc"].attributes["pointwise"]
    assert found["_cdist_forward"].vertex_cycles == 16 * 6 * 16**3


@pytest.mark.parametrize("name", ["sort", "topk", "median"])
def test_sorting_takes_the_steps_of_a_bitonic_network(name):
    shapes = [(1472, 1000)], [(1472, 1000)]
    along, across = cost(name, *shapes), cost(name, *shapes, dim=0)
    # 10 doublings, 55 steps; 11 doublings, 66 steps. 1 cycle to compare, 2 + 4 bytes to exchange.
    assert along.vertex_cycles == 55 * 2.5 * 1000 and across.vertex_cycles == 66 * 2.5 * 1000
    assert along.compute_sets == 55 * 3 and along.known
    assert cost(name, [(1,)], [(1,)]).compute_sets == 3
    # The largest few take less than a sort: 6 steps in groups of 8, then halves of 1 + 3 steps each.
    few = cost("topk", *shapes, k=5)
    assert few.compute_sets == (6 + 7 * 4) * 3
    assert 6 * 2.5 * 1000 < few.vertex_cycles < (6 + 2 * 2.5) * 2.5 * 1000
    # A sort compares more than a maximum.
    assert along.vertex_cycles > cost("argmax", *shapes).vertex_cycles


def test_a_lookup_costs_every_index_on_every_tile():
    """At least 8 cycles per index, with six workers in turn (popops MultiSlice)."""
    few = cost("embedding", [(30522, 768), (8, 128)], [(8, 128, 768)], integers=(1,))
    many = cost("embedding", [(30522, 768), (64, 128)], [(64, 128, 768)], integers=(1,))
    assert few.vertex_cycles >= 1024 * 8 and many.vertex_cycles >= 8192 * 8
    assert 6 < many.vertex_cycles / few.vertex_cycles < 8.5
    assert few.kind == "gather" and few.rearranged_elements == 1024 * 768
    added = cost(
        "embedding_dense_backward", [(8, 128, 768), (8, 128)], [(30522, 768)], phase="backward", integers=(1,)
    )
    assert added.kind == "scatter" and added.rearranged_elements == 1024 * 768
    assert 1024 * 5 <= added.vertex_cycles < 4 * few.vertex_cycles


@pytest.mark.parametrize("dims", [(128,), (14, 14), (4, 6, 8)])
def test_convolutions_of_any_dimensions_and_their_gradients(dims):
    kernel = (3,) * len(dims)
    source, weight = (2, 32, *dims), (64, 16, *kernel)
    result = (2, 64, *dims)
    forward = cost("convolution", [source, weight, (64,)], [result], groups=2)
    positions = 2 * math.prod(dims)
    assert forward.flops == 2 * positions * 64 * 16 * math.prod(kernel)
    assert forward.vertex_cycles == 0.75 * math.ceil(positions * 64 / 1472)
    assert forward.rearranged_elements == positions * 32  # nothing takes the result to another order
    backward = cost(
        "convolution_backward",
        [result, source, weight],
        [source, weight, (64,)],
        phase="backward",
        groups=2,
        output_mask=(True, True, True),
    )
    assert backward.flops == 2 * forward.flops
    assert backward.matmul_cycles > 2 * forward.matmul_cycles
    no_input = cost(
        "convolution_backward",
        [result, source, weight],
        [weight],
        phase="backward",
        groups=2,
        output_mask=(False, True, False),
    )
    assert no_input.flops == forward.flops and no_input.matmul_cycles < backward.matmul_cycles


def test_every_vertex_has_a_source():
    for name, vertex in vertices().items():
        assert len(vertex.source) > 10 and vertex.origin in ("derived", "assumed"), name
        assert vertex.elements in ("largest", "outputs")
        assert vertex.half_cycles >= 0 and vertex.float_cycles >= 0 and vertex.compute_sets >= 1, name


def test_every_rule_exists_and_every_vertex_has_an_operation():
    rules = {row.rule for row in rows().values()}
    assert rules == {"", "matmul", "convolution", "gather", "scatter", "sort", "view", *vertices()}


def test_every_row_says_something_and_names_what_exists():
    known = rows().values()
    assert all(content()["ops"].values())
    assert {row.fused_into for row in known} | {row.same_as for row in known} <= {"", *rows()}
    assert not [name for name in rows() if name.endswith("_")]  # those of the in-place variants


def test_scalars_cost_a_compute_set():
    found = cost("div", [(), ()], [()], dtype="float32")
    assert found.compute_sets == 1 and found.vertex_cycles == 5
