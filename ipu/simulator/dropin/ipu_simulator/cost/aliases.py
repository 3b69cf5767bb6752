"""Memory of tensors that PopART doesn't store as PyTorch does.

PyTorch's graph has tensors that an IPU never stores as such:

- The mask of a dropout: the backward pass draws the same numbers again from the seed (PopART's dropout).
- The gradient of a negative log likelihood, as wide as the logits: computed together with that of the softmax
  (PopART's pattern NlllWithSoftmaxGradDirect).
- A weight's gradient: it is added to the accumulator as soon as it is computed. The sum over several uses of
  a tied weight is therefore never a tensor, and an embedding's rows are added directly to its accumulator
  (patterns TiedGatherAccumulate, SparseAccumulate). Of a serialised matmul, only one slice is live at a time.
- Zeros that a gradient is written into: they share the gradient's memory.
- In inference, what a convolution gives to a batch norm: the norm is folded into its weights and bias.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Mapping

from ..graph.ir import Graph, Op
from ..op_table import row_of
from .serialization import slices_of_weights


@dataclass(frozen=True)
class Materialised:
    """:param bytes: tensor id -> bytes, for tensors whose memory differs from their size.
    :param sums: indices of operations that only add weights' gradients: the accumulator replaces them.
    """

    bytes: Mapping[int, int]
    sums: frozenset[int]


def is_view(op: Op, graph: Graph) -> bool:
    """True if an operation computes nothing: all of its outputs are views of its inputs."""
    # A generator takes three times as long, and a verdict asks half a million times.
    return None not in [graph.tensors[tensor_id].base for tensor_id in op.outputs]


def folded_into(norm: Op, graph: Graph) -> Op | None:
    """The convolution that a batch norm with fixed statistics is part of in inference, or None.

    Nothing else may use the convolution's result.
    """
    if graph.training or row_of(norm.name).rule != "norm" or norm.attributes.get("training") is not False:
        return None
    source = norm.inputs[0]
    producer = graph.producers.get(source)
    alone = len(graph.consumers[source]) == 1 and source not in graph.outputs
    return producer if alone and producer and row_of(producer.name).rule == "convolution" else None


def materialised(graph: Graph) -> Materialised:
    """The memory of `graph`'s tensors on the device, by ids of the tensors that own their memory."""
    producer: dict[int, Op] = {}
    consumers: dict[int, list[Op]] = defaultdict(list)
    for op in graph.ops:
        if not is_view(op, graph):
            producer.update((graph.owner(tensor_id).id, op) for tensor_id in op.outputs)
            for tensor_id in op.inputs:
                consumers[graph.owner(tensor_id).id].append(op)

    bytes_of: dict[int, int] = {}
    for op in graph.ops:
        row = row_of(op.name)
        if row.drawn_again is not None and len(op.outputs) > row.drawn_again:
            bytes_of[graph.owner(op.outputs[row.drawn_again]).id] = 0
        if row.fused_into:
            used_by = {consumer.name for consumer in consumers[op.outputs[0]]}
            if used_by == {row.fused_into}:
                bytes_of[op.outputs[0]] = 0

        if folded_into(op, graph):
            bytes_of[graph.owner(op.inputs[0]).id] = 0

    forward = {
        graph.owner(tensor_id).id for op in graph.ops if op.phase == "forward" for tensor_id in op.inputs
    }
    for tensor in graph.tensors:
        if tensor.role == "constant" and tensor.id not in forward:
            bytes_of[tensor.id] = 0

    factors = slices_of_weights(graph)
    sums: set[int] = set()
    for parameter, gradient in graph.gradients.items():
        pending = [gradient]
        while pending:
            tensor_id = graph.owner(pending.pop()).id
            op_or_none = producer.get(tensor_id)
            if op_or_none is None or any(op.index not in sums for op in consumers[tensor_id]):
                continue  # another operation needs it too
            if _is_sum(op_or_none, graph):
                sums.add(op_or_none.index)
                bytes_of[tensor_id] = 0
                pending += op_or_none.inputs
            elif row_of(op_or_none.name).into_accumulator:
                bytes_of[tensor_id] = 0
            else:
                factor = factors.get((parameter, op_or_none.module), 1)
                bytes_of[tensor_id] = -(-graph.tensors[tensor_id].bytes // factor)
    return Materialised(bytes_of, frozenset(sums))


def _is_sum(op: Op, graph: Graph) -> bool:
    """An addition of two gradients of the same weight, both as large as the output."""
    size = graph.tensors[op.outputs[0]].elements
    return (
        row_of(op.name).sums_gradients
        and op.phase == "backward"
        and len(op.inputs) == 2
        and all(graph.tensors[tensor_id].elements == size for tensor_id in op.inputs)
    )
