"""Bytes of code on an IPU: a stated model, since nothing is published.

Operations of equal shapes share their code, as PopART outlines repeated layers; recomputation shares the
forward pass's.
"""

from __future__ import annotations

import math
from typing import Callable, Iterable, Sequence

from ..graph.ir import Graph, Op, Tensor
from ..report.verdict import Buffer
from .materialised import is_view
from .memory_constants import MemoryConstants
from .op_cost import PRODUCTS, OpCost

# Operands to where the plan wants them, twice; products, sums of partial results.
_OF_A_PRODUCT = 4


def outline_key(op: Op, graph: Graph) -> tuple[object, ...]:
    """Equal for operations that can share their code."""
    shapes = tuple(
        (graph.tensors[tensor_id].shape, graph.tensors[tensor_id].dtype)
        for tensor_id in (*op.inputs, *op.outputs)
    )
    return (op.name, shapes, repr(sorted(op.attributes.items())))


def _compute_sets(cost: OpCost) -> int:
    """Compute sets that have code of their own: a series of products is a loop around those of one."""
    return min(cost.compute_sets, _OF_A_PRODUCT) if cost.kind in PRODUCTS else cost.compute_sets


def code(
    graph: Graph,
    ops: Sequence[Op],
    weights: Iterable[Tensor],
    replicas: int,
    op_cost: Callable[[Op], OpCost],
    constants: MemoryConstants,
) -> list[Buffer]:
    """Code and exchange code of an IPU that runs `ops`, recomputation included, and updates `weights`."""
    calls = [op for op in ops if not is_view(op, graph)]
    distinct = {outline_key(op, graph): op for op in calls}
    compute_sets = sum(_compute_sets(op_cost(op)) for op in distinct.values())
    collectives = len({weight.shape for weight in weights}) * math.log2(replicas)
    sizes = {
        ("control program and runtime", "code"): constants.code_bytes_fixed,
        (f"vertices of {len(distinct)} distinct operations", "code"): (
            constants.code_bytes_per_distinct_operation * len(distinct)
        ),
        (f"{len(calls)} calls of operations", "code"): constants.code_bytes_per_call * len(calls),
        (f"exchanges of {compute_sets} compute sets", "exchange_code"): (
            constants.exchange_code_bytes_per_compute_set * compute_sets
        ),
        ("exchanges of collectives", "exchange_code"): (
            constants.exchange_code_bytes_per_collective * collectives
        ),
    }
    return [Buffer(name, part, "", round(size)) for (name, part), size in sizes.items() if round(size)]
