"""The cost of each operation on its IPU, by the rule that its row of the table names (op_table.py).

Matrix products and convolutions are planned, including the copies that rearrange operands into a plan's
layout (layouts.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..environment import Target
from ..graph.ir import BYTES_OF_DTYPE, Graph, Op, Tensor
from ..op_table import row_of
from .aliases import folded_into
from .convolution import Convolution, gradient_of_input, plan_convolution, plan_weights_gradient
from .layouts import atoms, comes_in_channel_order, leaves_channel_order, rearranged, slow_elements
from .matmul import MatmulPlan, Product, plan
from .matrix_unit import unit_of
from .serialization import sliced
from .settings import Settings
from .vertices import operation_constants, vertices

PRODUCTS = ("matmul", "convolution")  # kinds that the planner handles


@dataclass(frozen=True)
class OpCost:
    """Cycles of the fullest tile by cause, and memory while the operation runs.

    :param kind: for reports: "matmul", "convolution", "norm", "softmax", "elementwise", "reduction",
        "gather", "rearrangement", "random", "view", ...
    :param matmul_cycles: as planned (compute, exchange, reduction), before any fitted factor.
    :param vertex_cycles: elementwise and other vertices.
    :param compute_sets: number of compute sets; each costs a sync and an exchange phase.
    :param rearranged_elements: elements copied into another layout, over the whole IPU.
    :param slow_elements: what narrow atoms add to those: as many elements in atoms of 8 bytes take as long.
    :param working_set_bytes: over the whole IPU, besides its inputs and outputs as they are stored.
    :param flops: floating-point operations, 2 per multiply-add.
    :param rule: the rule that gave this cost, such as "matmul planner"; "bound" if there is no rule.
    :param numbers: names of the constants and hardware facts that it depends on.
    """

    kind: str
    matmul_cycles: float = 0.0
    vertex_cycles: float = 0.0
    compute_sets: int = 0
    rearranged_elements: int = 0
    slow_elements: float = 0.0
    working_set_bytes: int = 0
    flops: int = 0
    rule: str = ""
    numbers: frozenset[str] = frozenset()

    @property
    def known(self) -> bool:
        """False for an operation without a cost rule: its cost is an upper bound, and reports name it."""
        return self.rule != "bound"


def matmul_cost(op: Op, graph: Graph, target: Target, proportion: float, half_partials: bool) -> OpCost:
    """mm, bmm and variants with an addend. A serializedMatMul is a series of products."""
    operands = op.inputs[-2:]
    left, right = (graph.tensors[number] for number in operands)
    if len(left.shape) < 2 or len(right.shape) < 2:
        rows, inner, columns = (
            left.elements // left.shape[-1],
            left.shape[-1],
            right.elements // left.shape[-1],
        )
        product = Product(1, rows, inner, columns, BYTES_OF_DTYPE[left.dtype], half_partials)
    else:
        product = Product(
            math.prod(left.shape[:-2]),
            left.shape[-2],
            left.shape[-1],
            right.shape[-1],
            BYTES_OF_DTYPE[left.dtype],
            half_partials,
        )
    product = replace(product, resident=_resident(op, graph))
    slices, product = sliced(op, graph, product)
    moved = [rearranged(op, number, graph) for number in operands]
    made = plan(product, target, proportion)
    constants = operation_constants()
    biased = len(op.inputs) > 2
    outputs = graph.tensors[op.outputs[0]].elements
    return OpCost(
        "matmul",
        matmul_cycles=slices * made.cycles,
        vertex_cycles=constants.bias_cycles * _tile_share(outputs, target) if biased else 0.0,
        compute_sets=slices * made.serial_splits * _compute_sets(made)
        + (constants.bias_compute_sets if biased else 0),
        rearranged_elements=sum(moved),
        slow_elements=sum(
            slow_elements(graph.tensors[number], count) for number, count in zip(operands, moved)
        ),
        working_set_bytes=made.temporary_bytes * target.tiles_per_ipu,
        flops=slices * product.flops,
        rule="matmul planner",
        numbers=_numbers_of_product(product, made, target)
        | (_BIAS if biased else frozenset())
        | frozenset().union(
            *(atoms(graph.tensors[number], count)[1] for number, count in zip(operands, moved))
        ),
    )


_BIAS = frozenset({"bias_cycles", "bias_compute_sets"})
_BIAS_GRADIENT = frozenset({"bias_gradient_cycles", "bias_gradient_compute_sets"})
# Hardware facts that every product and convolution depends on, besides the rate of its type.
_OF_PLANS = frozenset(
    {
        "worker_threads_per_tile",
        "load_bytes_per_cycle",
        "exchange_bytes_per_cycle",
        "shared_exchange_bytes_per_cycle",
        "product_compute_sets",
    }
)


def _compute_sets(made: MatmulPlan) -> int:
    """Compute sets of one product of the series."""
    constants = operation_constants()
    return constants.product_compute_sets + constants.reduction_compute_sets * (made.split_k > 1)


def _numbers_of_product(product: Product, made: MatmulPlan, target: Target) -> frozenset[str]:
    names = {unit_of(target, product.input_bytes, product.half_partials).fact}
    if made.split_k > 1:
        names.add("reduction_compute_sets")
    return _OF_PLANS | names | made.numbers


def _resident(op: Op, graph: Graph) -> Literal["left", "right", "neither"]:
    """A parameter stays where it is."""
    left, right = (graph.owner(number).role == "parameter" for number in op.inputs[-2:])
    if left != right:
        return "left" if left else "right"
    return "neither"


def convolution_cost(op: Op, graph: Graph, target: Target, proportion: float, half_partials: bool) -> OpCost:
    """A convolution or its gradients: of the input (another convolution), of the weights and of the bias.

    The device orders channels differently from the tensors around convolutions, so what doesn't come from
    another one, or goes elsewhere, is rearranged. The gradient of the input needs the weights with inputs and
    outputs exchanged; that of the weights the activations, of which positions become input channels.
    """
    forward = op.name == "convolution"
    tensors = [graph.tensors[number] for number in op.inputs]
    if forward:
        source, weight, result = tensors[0], tensors[1], graph.tensors[op.outputs[0]]
    else:
        result, source, weight = tensors[:3]
    entering = 0 if comes_in_channel_order(op.inputs[0], graph) else tensors[0].elements
    leaving = op.outputs[0]
    moved = entering + (graph.tensors[leaving].elements if leaves_channel_order(leaving, graph) else 0)
    groups = int(op.attributes.get("groups", 1))
    if op.attributes.get("transposed"):
        source, result = result, source
    convolution = Convolution(
        batch=source.shape[0],
        groups=groups,
        in_channels=source.shape[1] // groups,
        out_channels=result.shape[1] // groups,
        field=_plane(result.shape[2:]),
        kernel=_plane(weight.shape[2:]),
        input_bytes=BYTES_OF_DTYPE[source.dtype],
        half_partials=half_partials,
    )
    constants = operation_constants()
    compute_sets = constants.product_compute_sets + constants.convolution_layout_compute_sets
    fact = unit_of(target, convolution.input_bytes, half_partials).fact
    numbers = _OF_PLANS | {fact, "convolution_layout_compute_sets"}
    outputs = _tile_share(result.elements, target)
    if forward:
        biased = len(tensors) > 2
        made = plan_convolution(convolution, target, proportion)
        return OpCost(
            "convolution",
            matmul_cycles=made.cycles,
            vertex_cycles=constants.bias_cycles * outputs if biased else 0.0,
            compute_sets=compute_sets + (constants.bias_compute_sets if biased else 0),
            rearranged_elements=moved,
            working_set_bytes=made.temporary_bytes * target.tiles_per_ipu,
            flops=convolution.flops,
            rule="convolution planner",
            numbers=numbers | made.numbers | (_BIAS if biased else frozenset()),
        )
    wanted = tuple(op.attributes.get("output_mask", (True, True, False)))
    plans = []
    if wanted[0]:
        plans.append(plan_convolution(gradient_of_input(convolution), target, proportion))
        moved += weight.elements
    if wanted[1]:
        plans.append(plan_weights_gradient(convolution, target, proportion))
        moved = (moved if wanted[0] else 0) + source.elements + result.elements
    return OpCost(
        "convolution",
        matmul_cycles=sum(made.cycles for made in plans),
        vertex_cycles=constants.bias_gradient_cycles * outputs if wanted[2] else 0.0,
        compute_sets=len(plans) * compute_sets + (constants.bias_gradient_compute_sets if wanted[2] else 0),
        rearranged_elements=moved,
        working_set_bytes=max((made.temporary_bytes for made in plans), default=0) * target.tiles_per_ipu,
        flops=len(plans) * convolution.flops,
        rule="convolution planner",
        numbers=numbers.union(*(made.numbers for made in plans))
        | (_BIAS_GRADIENT if wanted[2] else frozenset()),
    )


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a field or kernel of any number of dimensions."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def _tile_share(elements: int, target: Target) -> int:
    return -(-elements // target.tiles_per_ipu)


_OF_LOOKUPS = frozenset(
    {"worker_threads_per_tile", "exchange_bytes_per_cycle", "lookup_compute_sets", "lookup_atom_elements"}
)


def lookup_cost(op: Op, graph: Graph, target: Target) -> OpCost:
    """A gather of rows by index, or an addition to rows (popops MultiSlice and MultiUpdateAdd).

    The table is split over tiles by rows and columns. Every tile examines every index, also those of rows
    that it doesn't have, at a small cost.
    """
    inputs = [graph.tensors[number] for number in op.inputs]
    made = graph.tensors[op.outputs[0]]
    rule = row_of(op.name).rule
    gathering = rule == "gather"
    table = inputs[0] if gathering else made
    columns = table.shape[-1] if len(table.shape) > 1 else 1
    moved = made.elements if gathering else _moved_elements(inputs)
    indices = -(-moved // columns)
    rows = max(1, table.elements // columns)
    cycles = _lookup_cycles(gathering, rows, columns, indices, target)
    exchanged = moved * BYTES_OF_DTYPE[made.dtype] / target.tiles_per_ipu / target.exchange_bytes_per_cycle
    vertex = ("cycles", "cycles_per_row", "cycles_per_element", "cycles_per_other_row")
    return OpCost(
        rule,
        vertex_cycles=cycles + exchanged,
        compute_sets=operation_constants().lookup_compute_sets,
        rearranged_elements=moved,
        rule="lookup",
        numbers=_OF_LOOKUPS | {f"{rule}_{name}" for name in vertex},
    )


def _moved_elements(inputs: list[Tensor]) -> int:
    """Number of elements added: of the floating-point inputs, which may include the table."""
    values = [tensor.elements for tensor in inputs if tensor.dtype.startswith(("float", "bfloat"))]
    return min(values, default=max((tensor.elements for tensor in inputs), default=0))


def _lookup_cycles(gathering: bool, rows: int, columns: int, indices: int, target: Target) -> float:
    """Cycles of the best split of the table over tiles, for uniformly distributed indices."""
    constants, workers = operation_constants(), target.worker_threads_per_tile
    if gathering:
        fixed, found = constants.gather_cycles, constants.gather_cycles_per_row
        per_element, elsewhere = constants.gather_cycles_per_element, constants.gather_cycles_per_other_row
    else:
        fixed, found = constants.scatter_cycles, constants.scatter_cycles_per_row
        per_element, elsewhere = constants.scatter_cycles_per_element, constants.scatter_cycles_per_other_row
    most_splits = min(math.ceil(columns / constants.lookup_atom_elements), target.tiles_per_ipu)
    column_splits = np.arange(1, most_splits + 1)
    row_splits = np.minimum(np.maximum(target.tiles_per_ipu // column_splits, 1), rows)
    # Tiles that a small table leaves over hold copies of it, each for some of the indices.
    copies = np.maximum(target.tiles_per_ipu // (column_splits * row_splits), 1)
    elements = np.ceil(columns / column_splits)
    of_worker = np.ceil(indices / (workers * copies))
    here = of_worker / row_splits
    worker = fixed + here * (found + elements * per_element) + (of_worker - here) * elsewhere
    return float(workers * worker.min())


def vertex_cost(op: Op, graph: Graph, target: Target) -> OpCost:
    """The cost in the table of vertices, otherwise the upper bound."""
    vertex = vertices().get(row_of(op.name).rule)
    tensors = [graph.tensors[number] for number in op.outputs]
    if vertex is None or vertex.elements == "largest":
        tensors += [graph.tensors[number] for number in op.inputs]
    largest = max(tensors, key=lambda tensor: tensor.elements, default=None)
    elements = largest.elements if largest else 0
    on_a_tile = _tile_share(elements, target)
    if vertex is None:
        return _bound(op, largest, target)
    half = largest is not None and BYTES_OF_DTYPE[largest.dtype] <= 2
    cycles = vertex.cycles(half)
    moved = elements if vertex.rearranged else 0
    width = atoms(largest, moved)[1] if largest else frozenset()
    return OpCost(
        vertex.kind,
        vertex_cycles=cycles * on_a_tile,
        compute_sets=vertex.compute_sets,
        rearranged_elements=moved,
        slow_elements=slow_elements(largest, moved) if largest else 0.0,
        rule="vertex table",
        numbers=frozenset({vertex.compute_sets_name, *([vertex.cycles_name(half)] if cycles else [])})
        | width,
    )


def _bound(op: Op, largest: Tensor | None, target: Target) -> OpCost:
    """What an operation without a rule takes at most.

    A pointwise one, a copy or a draw costs the dearest vertex. Any other may need each element as often as
    its longest dimension is, one after another, as in a factorisation: as on one worker of one tile.
    """
    constants, row = operation_constants(), row_of(op.name)
    elements = largest.elements if largest else 0
    numbers = {"unknown_cycles", "unknown_compute_sets"}
    if op.attributes.get("pointwise") or row.rule == "view" or row.random or row.copies:
        on_a_tile = _tile_share(elements, target)
    else:
        longest = max(largest.shape, default=1) if largest else 1
        on_a_tile = elements * longest * target.worker_threads_per_tile
        numbers.add("worker_threads_per_tile")
    return OpCost(
        "unknown",
        vertex_cycles=constants.unknown_cycles * on_a_tile,
        compute_sets=constants.unknown_compute_sets,
        rule="bound",
        numbers=frozenset(numbers),
    )


def sort_cost(op: Op, graph: Graph, target: Target) -> OpCost:
    """A bitonic sort (as popops' TopK): L (L + 1) / 2 steps for L doublings of the sorted dimension.

    A step compares pairs of elements, and exchanges them with their positions. The largest k are found among
    sorted groups of k: of each pair of groups one step keeps the larger half, and L steps sort it again.
    """
    source, vertex = graph.tensors[op.inputs[0]], vertices()["reduction with positions"]
    dimension = op.attributes.get("dim", -1)
    length = source.shape[-1 if dimension is None else dimension] if source.shape else 1
    kept = min(op.attributes.get("k", length), length)
    of_group = math.ceil(math.log2(max(kept, 1)))
    halvings = math.ceil(math.log2(max(length, 1))) - of_group
    steps = of_group * (of_group + 1) // 2
    # Each halving leaves half of the elements to the next one.
    passes = steps + sum((1 + of_group / 2) / 2**turn for turn in range(halvings))
    item_bytes = BYTES_OF_DTYPE[source.dtype]
    moved = (item_bytes + BYTES_OF_DTYPE["int32"]) / target.exchange_bytes_per_cycle
    on_a_tile, half = _tile_share(source.elements, target), item_bytes <= 2
    return OpCost(
        vertex.kind,
        vertex_cycles=passes * (vertex.cycles(half) + moved) * on_a_tile,
        compute_sets=max(1, steps + halvings * (1 + of_group)) * vertex.compute_sets,
        rule="bitonic sort",
        numbers=frozenset({vertex.cycles_name(half), vertex.compute_sets_name, "exchange_bytes_per_cycle"}),
    )


def norm_with_fixed_statistics_cost(op: Op, graph: Graph, target: Target) -> OpCost:
    """A batch norm in inference: a multiplication and an addition, or part of the convolution before it.

    There it costs the addition of a bias, if the convolution had none.
    """
    result, constants = graph.tensors[op.outputs[0]], operation_constants()
    on_a_tile = _tile_share(result.elements, target)
    convolution = folded_into(op, graph)
    if convolution is not None:
        if len(convolution.inputs) > 2:
            return OpCost("view", rule="folded into the convolution")
        return OpCost(
            "norm",
            vertex_cycles=constants.bias_cycles * on_a_tile,
            compute_sets=constants.bias_compute_sets,
            rule="folded into the convolution",
            numbers=_BIAS,
        )
    vertex, half = vertices()["binary arithmetic"], BYTES_OF_DTYPE[result.dtype] <= 2
    return OpCost(
        "norm",
        vertex_cycles=2 * vertex.cycles(half) * on_a_tile,
        compute_sets=2 * vertex.compute_sets,
        rule="vertex table",
        numbers=frozenset({vertex.cycles_name(half), vertex.compute_sets_name}),
    )


_VIEW = OpCost("view", rule="no cost")


def op_cost(op: Op, graph: Graph, settings: Settings, target: Target) -> OpCost:
    """The cost of one operation on its IPU. Never fails: an operation without a rule gets the upper bound."""
    if all(graph.tensors[number].base is not None for number in op.outputs):
        return _VIEW  # no new memory, no cycles
    if row_of(op.name).uninitialised:
        return _VIEW  # memory, but no cycles
    rule = row_of(op.name).rule
    if rule in PRODUCTS:
        cost = matmul_cost if rule == "matmul" else convolution_cost
        return cost(op, graph, target, _proportion(op, settings), settings.half_partials)
    if rule in ("gather", "scatter"):
        return lookup_cost(op, graph, target)
    if rule == "sort":
        return sort_cost(op, graph, target)
    if rule == "norm" and op.attributes.get("training") is False:
        return norm_with_fixed_statistics_cost(op, graph, target)
    return vertex_cost(op, graph, target)


def _proportion(op: Op, settings: Settings) -> float:
    """The available-memory proportion: set on the operation, or that of its IPU."""
    own = op.attributes.get("available_memory_proportion")
    if own is not None:
        return float(own)
    proportions = settings.matmul_proportions
    return proportions[min(op.ipu, len(proportions) - 1)]
