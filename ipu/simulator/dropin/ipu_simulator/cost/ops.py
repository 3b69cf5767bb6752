"""Matrix products and convolutions of a graph: planned, with the copies between the layouts that plans want.

Weights stand in memory as the forward pass wants them. The backward pass needs them, and the activations from
which it makes the weights' gradients, with inner and outer dimensions exchanged: these are rearranged.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

import numpy as np

from ..environment import Target
from ..graph.ir import BYTES_OF_DTYPE, Graph, Op, Tensor
from .convolution import WEIGHT_GRADIENT_FACTOR, Convolution, plan_convolution
from .matmul import Plan, Product, plan
from .serialization import sliced
from .settings import Settings

# What one operation costs on one IPU.

PRODUCTS = ("matmul", "convolution")  # kinds that the planner works on


@dataclass(frozen=True)
class OpCost:
    """Cycles of the fullest tile by cause, and memory while the operation runs.

    :param kind: for reports: "matmul", "convolution", "norm", "softmax", "elementwise", "reduction",
        "gather", "rearrangement", "random", "view", ...
    :param matmul_cycles: as planned (compute, exchange, reduction), before any fitted factor.
    :param vertex_cycles: elementwise and other vertices.
    :param compute_sets: compute sets that it takes; each costs a sync and an exchange phase.
    :param rearranged_elements: elements copied into another layout, over the whole IPU.
    :param working_set_bytes: over the whole IPU, beside its inputs and outputs as they are kept.
    :param flops: floating-point operations, 2 for a multiplication with addition.
    :param rule: which rule gave this, such as "matmul planner"; "bound" for an operation without a rule.
    """

    kind: str
    matmul_cycles: float = 0.0
    vertex_cycles: float = 0.0
    compute_sets: int = 0
    rearranged_elements: int = 0
    working_set_bytes: int = 0
    flops: int = 0
    rule: str = ""

    @property
    def known(self) -> bool:
        """False for an operation without a cost rule: a bound was used, and reports name it."""
        return self.rule != "bound"


MATMULS = frozenset("mm addmm bmm baddbmm addmv mv dot".split())
CONVOLUTIONS = frozenset("convolution convolution_backward".split())

# A bias: added in its own pass, and summed over rows for its gradient (popops; cycles an element in float16).
_BIAS_CYCLES = 0.75
_BIAS_GRADIENT_CYCLES = 0.5
_BIAS_GRADIENT_COMPUTE_SETS = 2
# Operands to where the plan wants them, then the products themselves; one more sums partial results.
_PRODUCT_COMPUTE_SETS = 2


def matmul_cost(op: Op, graph: Graph, target: Target, proportion: float, half_partials: bool) -> OpCost:
    """mm, bmm and those with an addend. A serializedMatMul is as many products, one after another."""
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
    slices, product = sliced(op, graph, product)
    made = plan(product, target, proportion)
    cost = _planned(made, slices, target)
    biased = len(op.inputs) > 2
    outputs = graph.tensors[op.outputs[0]].elements
    return OpCost(
        "matmul",
        matmul_cycles=cost[0],
        vertex_cycles=_BIAS_CYCLES * _tile_share(outputs, target) if biased else 0.0,
        compute_sets=cost[1] + biased,
        rearranged_elements=sum(_rearranged(op, number, graph) for number in operands),
        working_set_bytes=made.temporary_bytes * target.tiles_per_ipu,
        flops=slices * product.flops,
        rule="matmul planner",
    )


def _planned(made: Plan, slices: int, target: Target) -> tuple[float, int]:
    """(cycles, compute sets) of `slices` equal products."""
    compute_sets = _PRODUCT_COMPUTE_SETS + (made.split_k > 1)
    return slices * made.cycles, slices * made.serial_splits * compute_sets


def _rearranged(op: Op, number: int, graph: Graph) -> int:
    """Elements of an operand that must be copied into the layout of the plan."""
    elements = graph.tensors[number].elements
    if graph.owner(number).role in ("parameter", "constant"):
        return elements if op.phase == "backward" else 0
    if op.phase == "forward" and op.name in ("mm", "addmm"):
        return 0  # whatever made it wrote it as the plan wants
    if any(graph.owner(other).role == "parameter" for other in op.inputs[-2:]):
        return 0
    producer = graph.producers.get(graph.owner(number).id)
    return 0 if producer is not None and producer.name == "clone" and _same_order(number, graph) else elements


def _same_order(number: int, graph: Graph) -> bool:
    """Whether a view of a tensor has its dimensions in the same order."""
    tensor = graph.tensors[number]
    while tensor.base is not None:
        producer = graph.producers.get(tensor.id)
        if producer is None or producer.name in ("t", "transpose", "permute"):
            return False
        tensor = graph.tensors[producer.inputs[0]]
    return True


def convolution_cost(op: Op, graph: Graph, target: Target, proportion: float, half_partials: bool) -> OpCost:
    """A convolution, or its gradients: of the input (one like it), of the weights and of the bias.

    The device has channels in another order than the tensors around it: what goes in and out is rearranged,
    for each of the gradients again.
    """
    forward = op.name == "convolution"
    tensors = [graph.tensors[number] for number in op.inputs]
    if forward:
        source, weight, result = tensors[0], tensors[1], graph.tensors[op.outputs[0]]
    else:
        result, source, weight = tensors[:3]
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
    moved = source.elements + result.elements
    outputs = _tile_share(result.elements, target)
    if forward:
        biased = len(tensors) > 2
        made = plan_convolution(convolution, target, proportion)
        return OpCost(
            "convolution",
            matmul_cycles=made.cycles,
            vertex_cycles=_BIAS_CYCLES * outputs if biased else 0.0,
            compute_sets=_PRODUCT_COMPUTE_SETS + 2 + biased,
            rearranged_elements=moved,
            working_set_bytes=made.temporary_bytes * target.tiles_per_ipu,
            flops=convolution.flops,
            rule="convolution planner",
        )
    wanted = tuple(op.attributes.get("output_mask", (True, True, False)))
    cycles, working_set, passes = 0.0, 0, 0
    if wanted[0]:
        backward = _gradient_of_input(convolution, _plane(source.shape[2:]))
        made = plan_convolution(backward, target, proportion)
        cycles, working_set, passes = made.cycles, made.temporary_bytes, 1
    if wanted[1]:
        weight_cycles, weight_bytes = _gradient_of_weights(convolution, target, proportion)
        cycles, working_set, passes = cycles + weight_cycles, max(working_set, weight_bytes), passes + 1
    return OpCost(
        "convolution",
        matmul_cycles=cycles,
        vertex_cycles=_BIAS_GRADIENT_CYCLES * outputs if wanted[2] else 0.0,
        compute_sets=passes * (_PRODUCT_COMPUTE_SETS + 2) + _BIAS_GRADIENT_COMPUTE_SETS * bool(wanted[2]),
        rearranged_elements=passes * moved,
        working_set_bytes=working_set * target.tiles_per_ipu,
        flops=passes * convolution.flops,
        rule="convolution planner",
    )


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a field or kernel of any dimensions."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def _gradient_of_input(convolution: Convolution, field: tuple[int, int]) -> Convolution:
    """A convolution with inputs and outputs exchanged."""
    return Convolution(
        convolution.batch,
        convolution.groups,
        convolution.out_channels,
        convolution.in_channels,
        field,
        convolution.kernel,
        convolution.input_bytes,
        convolution.half_partials,
    )


def _gradient_of_weights(convolution: Convolution, target: Target, proportion: float) -> tuple[float, int]:
    """(cycles, temporary bytes of a tile)."""
    if convolution.taps == 1:
        product = Product(
            convolution.groups,
            convolution.in_channels,
            convolution.batch * convolution.positions,
            convolution.out_channels,
            convolution.input_bytes,
            convolution.half_partials,
        )
        made = plan(product, target, proportion)
        return made.cycles, made.temporary_bytes
    forward = plan_convolution(convolution, target, proportion)
    return WEIGHT_GRADIENT_FACTOR * forward.cycles, forward.temporary_bytes


def _tile_share(elements: int, target: Target) -> int:
    return -(-elements // target.tiles_per_ipu)


# Rows of a table by index: gathers, and additions to them (popops MultiSlice and MultiUpdateAdd).
#
# The table is spread over tiles by rows and columns. Every tile that holds part of it examines every index;
# the rows that are elsewhere cost it little, but not nothing.

# Columns come in atoms of this size (two 64-bit words keep a copy fast).
_ATOM = 8

# Worker's cycles: of the vertex, of an index in range without and with its elements, of one that isn't.
_GATHER = (30, 19, 1.0, 8)
_UPDATE = (33, 12, 1.5, 5)

GATHERS = frozenset("embedding index_select gather index take_along_dim".split())
UPDATES = frozenset(
    "embedding_dense_backward index_add index_put scatter scatter_add scatter_reduce gather_backward "
    "_index_put_impl".split()
)


def lookup_cost(op: Op, graph: Graph, target: Target) -> OpCost:
    """A gather of rows, or an addition to rows."""
    inputs = [graph.tensors[number] for number in op.inputs]
    made = graph.tensors[op.outputs[0]]
    gathering = op.name in GATHERS
    table = inputs[0] if gathering else made
    columns = table.shape[-1] if len(table.shape) > 1 else 1
    moved = made.elements if gathering else _moved_elements(inputs)
    indices = -(-moved // columns)
    rows = max(1, table.elements // columns)
    cycles = _cycles(_GATHER if gathering else _UPDATE, rows, columns, indices, target)
    exchanged = moved * BYTES_OF_DTYPE[made.dtype] / target.tiles_per_ipu / target.exchange_bytes_per_cycle
    return OpCost(
        "gather" if gathering else "scatter",
        vertex_cycles=cycles + exchanged,
        compute_sets=3,  # indices to all tiles, the vertices, rows to where they are used
        rearranged_elements=moved,
        rule="lookup",
    )


def _moved_elements(inputs: list[Tensor]) -> int:
    """Of the values that are added, which are floating point; their table may be an input too."""
    values = [tensor.elements for tensor in inputs if tensor.dtype.startswith(("float", "bfloat"))]
    return min(values, default=max((tensor.elements for tensor in inputs), default=0))


def _cycles(
    costs: tuple[int, int, float, int], rows: int, columns: int, indices: int, target: Target
) -> float:
    """The best split of the table over tiles; an index is as likely in any row."""
    fixed, found, per_element, elsewhere = costs
    column_splits = np.arange(1, min(math.ceil(columns / _ATOM), target.tiles_per_ipu) + 1)
    row_splits = np.minimum(np.maximum(target.tiles_per_ipu // column_splits, 1), rows)
    elements = np.ceil(columns / column_splits)
    of_worker = math.ceil(indices / target.worker_threads_per_tile)
    here = of_worker / row_splits
    worker = fixed + here * (found + elements * per_element) + (of_worker - here) * elsewhere
    return float(target.worker_threads_per_tile * worker.min())


# Operations that are no products: the table of vertices.json, and the bound for what isn't in it.

_FILE = Path(__file__).with_name("vertices.json")

# What an operation without a rule is assumed to cost: as the dearest poplibs vertex, a GELU by erf.
BOUND_CYCLES_PER_ELEMENT = 16.0


@dataclass(frozen=True)
class Vertex:
    """An entry of the table.

    :param elements: "largest": cycles are for each element of the largest tensor; "outputs": of the largest
        output.
    :param rearranged: its elements move into another layout.
    """

    kind: str
    half_cycles: float
    float_cycles: float
    compute_sets: int
    source: str
    elements: str = "largest"
    rearranged: bool = False


@functools.cache
def table() -> Mapping[str, Vertex]:
    """Vertices by the name of the operation."""
    vertices = {}
    for entry in json.loads(_FILE.read_text(encoding="utf-8"))["vertices"]:
        names = entry.pop("ops")
        vertices.update(dict.fromkeys(names, Vertex(**entry)))
    return vertices


def vertex_cost(op: Op, graph: Graph, target: Target) -> OpCost:
    """What the table says, else the bound."""
    vertex = table().get(op.name)
    tensors = [graph.tensors[number] for number in op.outputs]
    if vertex is None or vertex.elements == "largest":
        tensors += [graph.tensors[number] for number in op.inputs]
    largest = max(tensors, key=lambda tensor: tensor.elements, default=None)
    elements = largest.elements if largest else 0
    on_a_tile = -(-elements // target.tiles_per_ipu)
    if vertex is None:
        return OpCost(
            "unknown", vertex_cycles=BOUND_CYCLES_PER_ELEMENT * on_a_tile, compute_sets=1, rule="bound"
        )
    half = largest is not None and BYTES_OF_DTYPE[largest.dtype] <= 2
    return OpCost(
        vertex.kind,
        vertex_cycles=(vertex.half_cycles if half else vertex.float_cycles) * on_a_tile,
        compute_sets=vertex.compute_sets,
        rearranged_elements=elements if vertex.rearranged else 0,
        rule="vertex table",
    )


# What each operation of a graph costs: the right rule by its name.

_VIEW = OpCost("view", rule="no cost")


def op_cost(op: Op, graph: Graph, settings: Settings, target: Target) -> OpCost:
    """The cost of one operation on its IPU. Never fails: an operation without a rule gets the bound."""
    if all(graph.tensors[number].base is not None for number in op.outputs):
        return _VIEW  # another name for memory that is there
    if op.name in MATMULS or op.name in CONVOLUTIONS:
        proportion = _proportion(op, settings)
        cost = matmul_cost if op.name in MATMULS else convolution_cost
        return cost(op, graph, target, proportion, settings.half_partials)
    if op.name in GATHERS or op.name in UPDATES:
        return lookup_cost(op, graph, target)
    return vertex_cost(op, graph, target)


def _proportion(op: Op, settings: Settings) -> float:
    """The available-memory proportion: the operation's own, or that of its IPU."""
    own = op.attributes.get("available_memory_proportion")
    if own is not None:
        return float(own)
    proportions = settings.matmul_proportions
    return proportions[min(op.ipu, len(proportions) - 1)]
