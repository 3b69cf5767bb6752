"""What each operation of a graph costs: the right rule by its name."""

from __future__ import annotations

from ..graph.ir import Graph, Op
from ..targets import Target
from .lookups import GATHERS, UPDATES, lookup_cost
from .op_cost import OpCost
from .products import CONVOLUTIONS, MATMULS, convolution_cost, matmul_cost
from .settings import Settings
from .vertices import vertex_cost

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
