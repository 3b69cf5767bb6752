"""Which operands have to be copied into the layout that a plan wants, and how long that takes.

Weights are stored in the layout of the forward pass. The backward pass needs the weights, and the activations
for the weights' gradients, with inner and outer dimensions exchanged: these are rearranged.

Convolutions order channels differently from PyTorch. Elementwise operations, norms, reductions and pooling
work in any order, so that activations stay in the convolutions' order from one to the next.
"""

from __future__ import annotations

from ..graph.ir import BYTES_OF_DTYPE, Graph, Op, Tensor
from ..op_table import row_of
from .vertices import operation_constants, vertices


def rearranged(op: Op, number: int, graph: Graph) -> int:
    """Elements of a product's operand that must be copied into the layout of the plan."""
    elements = graph.tensors[number].elements
    if graph.owner(number).role in ("parameter", "constant"):
        return elements if op.phase == "backward" else 0
    if op.phase == "forward" and row_of(op.name).operands_in_layout:
        return 0  # its producer writes it in the plan's layout
    if any(graph.owner(other).role == "parameter" for other in op.inputs[-2:]):
        return 0
    producer = graph.producers.get(graph.owner(number).id)
    return (
        0
        if producer is not None and row_of(producer.name).keeps_order and _same_order(number, graph)
        else elements
    )


def atoms(tensor: Tensor, elements: int) -> tuple[float, frozenset[str]]:
    """(How many times as long a tensor's atoms take as atoms of 8 bytes, name of that number if it acts).

    Atoms are the widest pieces of 8, 4 or 2 bytes that a row divides into (poplin/ConvPlan.cpp).
    """
    row_bytes = (tensor.shape[-1] if tensor.shape else 1) * BYTES_OF_DTYPE[tensor.dtype]
    if not elements or row_bytes % 8 == 0:
        return 1.0, frozenset()
    constants = operation_constants()
    if row_bytes % 4 == 0:
        return constants.four_byte_atoms_factor, frozenset({"four_byte_atoms_factor"})
    return constants.two_byte_atoms_factor, frozenset({"two_byte_atoms_factor"})


def slow_elements(tensor: Tensor, elements: int) -> float:
    return (atoms(tensor, elements)[0] - 1) * elements


def _same_order(number: int, graph: Graph) -> bool:
    """True if a view of a tensor keeps the order of its dimensions."""
    tensor = graph.tensors[number]
    while tensor.base is not None:
        producer = graph.producers.get(tensor.id)
        if producer is None or row_of(producer.name).reorders:
            return False
        tensor = graph.tensors[producer.inputs[0]]
    return True


def comes_in_channel_order(number: int, graph: Graph) -> bool:
    """Whether a convolution, and then only operations that work in any order, made an activation."""
    waiting, seen = [number], set()
    while waiting:
        current = waiting.pop()
        producer = graph.producers.get(current)
        if producer is None or current in seen:
            continue
        seen.add(current)
        if row_of(producer.name).rule == "convolution":
            return True
        if _in_any_order(producer, graph):
            dimensions = len(graph.tensors[current].shape)
            waiting += [each for each in producer.inputs if len(graph.tensors[each].shape) == dimensions]
    return False


def leaves_channel_order(number: int, graph: Graph) -> bool:
    """Whether an operation that needs PyTorch's order uses what a convolution made, or its outputs do."""
    waiting, seen = [number], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in graph.outputs:
            return True
        for op in graph.consumers.get(current, ()):
            if row_of(op.name).rule == "convolution":
                continue
            if not _in_any_order(op, graph):
                return True
            dimensions = len(graph.tensors[current].shape)
            waiting += [each for each in op.outputs if len(graph.tensors[each].shape) == dimensions]
    return False


def _in_any_order(op: Op, graph: Graph) -> bool:
    """Whether an operation takes its operands in any layout, and writes its results in theirs."""
    row = row_of(op.name)
    if all(graph.tensors[number].base is not None for number in op.outputs):
        return not row.reorders
    vertex = vertices().get(row.rule)
    return vertex is not None and not vertex.rearranged
