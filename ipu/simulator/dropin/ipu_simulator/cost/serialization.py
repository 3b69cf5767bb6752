"""Serialised products (poptorch.serializedMatMul): the dimension along which each is sliced.

PopTorch's modes slice a product [m, k] x [k, n] along m (InputChannels), k (ReducingDim), n (OutputChannels)
or not at all (Disabled). The products of its gradients, d_left = [m, n] x [n, k] and d_right = [k, m] x [m,
n] or their transposes, are sliced along the same dimension (PopART, transforms/serializematmuls.cpp).
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.ir import Graph, Op
from .matmul import Product

_DIMENSION = {"InputChannels": "m", "ReducingDim": "k", "OutputChannels": "n", "Disabled": ""}
_OF_LEFT, _OF_RIGHT = "mk", "kn"


def _mark(op: Op) -> tuple[str, int]:
    """(sliced dimension of the forward product, number of slices); ("", 1) if it isn't sliced."""
    mode, factor = op.attributes.get("serialization", ("Disabled", 1))
    dimension = _DIMENSION[mode]
    return (dimension, factor) if dimension and factor > 1 else ("", 1)


def sliced(op: Op, graph: Graph, product: Product) -> tuple[int, Product]:
    """(number of slices, one slice) of a product; (1, `product`) if it isn't sliced."""
    dimension, slices = _mark(op)
    if not dimension:
        return 1, product
    rows, inner, columns = _dimensions(op, graph)
    if dimension == rows:
        return slices, replace(product, m=-(-product.m // slices))
    if dimension == inner:
        return slices, replace(product, k=-(-product.k // slices))
    assert dimension == columns
    return slices, replace(product, n=-(-product.n // slices))


def _dimensions(op: Op, graph: Graph) -> tuple[str, str, str]:
    """The dimensions of the forward product that are this one's rows, inner dimension and columns.

    A product of the backward pass that has none or both of the forward one's operands is its recomputation.
    """
    left, right = (graph.owner(number).id for number in op.inputs[-2:])
    for forward in graph.ops:
        if forward.phase == "forward" and forward.name == op.name and forward.module == op.module:
            of_left, of_right = (graph.owner(number).id for number in forward.inputs[-2:])
            if (left, right) == (of_left, of_right):
                break
            # One operand comes from the forward pass, the other is the gradient of its result.
            if left == of_left:
                return "k", "m", "n"
            if right == of_left:
                return "n", "m", "k"
            if right == of_right:
                return "m", "n", "k"
            if left == of_right:
                return "k", "n", "m"
    return "m", "k", "n"


def slices_of_weights(graph: Graph) -> dict[tuple[int, str], int]:
    """(id of a parameter, path of the module that uses it) -> slices of its use, and of its gradient.

    If rows of activations are sliced, each slice adds to the whole gradient.
    """
    slices: dict[tuple[int, str], int] = {}
    for op in graph.ops:
        dimension, factor = _mark(op)
        if op.phase == "forward" and dimension:
            for number, dimensions in zip(op.inputs[-2:], (_OF_LEFT, _OF_RIGHT)):
                owner = graph.owner(number)
                if owner.role == "parameter" and dimension in dimensions:
                    slices[owner.id, op.module] = factor
    return slices
