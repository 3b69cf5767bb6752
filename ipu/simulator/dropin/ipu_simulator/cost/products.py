"""Matrix products and convolutions of a graph: planned, with the copies between the layouts that plans want.

Weights stand in memory as the forward pass wants them. The backward pass needs them, and the activations from
which it makes the weights' gradients, with inner and outer dimensions exchanged: these are rearranged.
"""

from __future__ import annotations

import math

from ..graph.ir import BYTES_OF_DTYPE, Graph, Op
from ..targets import Target
from .convolution import WEIGHT_GRADIENT_FACTOR, Convolution, plan_convolution
from .matmul import Plan, Product, plan
from .op_cost import OpCost

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
    slices, product = _serialized(op, product)
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


def _serialized(op: Op, product: Product) -> tuple[int, Product]:
    """(number of slices, one of them) of a serializedMatMul; its gradients are cut alike."""
    mark = op.attributes.get("serialization")
    if not mark:
        return 1, product
    slices = int(mark[1])
    sliced = max(product.m, product.k, product.n)  # the vocabulary, wherever it stands
    m, k, n = product.m, product.k, product.n
    if n == sliced:
        n = -(-n // slices)
    elif m == sliced:
        m = -(-m // slices)
    else:
        k = -(-k // slices)
    return slices, Product(product.groups, m, k, n, product.input_bytes, product.half_partials)


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
