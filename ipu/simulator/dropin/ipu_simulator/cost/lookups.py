"""Rows of a table by index: gathers, and additions to them (popops MultiSlice and MultiUpdateAdd).

The table is spread over tiles by rows and columns. Every tile that holds part of it examines every index; the
rows that are elsewhere cost it little, but not nothing.
"""

from __future__ import annotations

import math

import numpy as np

from ..graph.ir import BYTES_OF_DTYPE, Graph, Op, Tensor
from ..targets import Target
from .op_cost import OpCost

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
