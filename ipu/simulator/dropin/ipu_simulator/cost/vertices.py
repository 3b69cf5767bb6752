"""Operations that are no products: the table of vertices.yml, and the bound for what isn't in it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

import yaml

from ..graph.ir import BYTES_OF_DTYPE, Graph, Op
from ..targets import Target
from .op_cost import OpCost

_FILE = Path(__file__).with_name("vertices.yml")

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
    for entry in yaml.safe_load(_FILE.read_text(encoding="utf-8")):
        names = entry.pop("ops").split()
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
