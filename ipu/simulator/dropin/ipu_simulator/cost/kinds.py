"""Kinds of programs, and how far predicted times of each are off.

The error printed beside a time is that of published rows of the same kind and framework that were left out of
the fit: pretraining of BERT row by row, other kinds altogether. Where there is no such row, reports say so.
"""

from __future__ import annotations

from ..graph.ir import Graph
from ..op_table import row_of
from .constants import entries
from .settings import Settings

BERT_PRETRAINING = "pretraining of BERT"
OTHER_ENCODERS = "other encoders"
CONVOLUTIONAL = "convolutional networks"
RECURRENT = "recurrent networks"
INFERENCE = "inference"
OTHER = "programs of this kind"

_RECURRENT_OPS = ("lstm", "gru", "rnn")


def kind_of(graph: Graph) -> str:
    """The kind of a program, by the operations of its forward pass."""
    if not graph.training:
        return INFERENCE
    forward = [op for op in graph.ops if op.phase == "forward"]
    names = {op.name for op in forward}
    if any(part in name for name in names for part in _RECURRENT_OPS):
        return RECURRENT
    convolves = any(row_of(name).rule == "convolution" for name in names)
    # The softmax of attention; a loss has its logarithm.
    attends = any(row_of(name).rule == "softmax" and "log" not in name for name in names)
    if not attends:
        return CONVOLUTIONAL if convolves else OTHER
    return OTHER_ENCODERS if convolves or not _projects_on_its_vocabulary(graph) else BERT_PRETRAINING


def _projects_on_its_vocabulary(graph: Graph) -> bool:
    """True if a table that tokens are looked up in is also the operand of a product."""
    tables: set[int] = set()
    factors: set[int] = set()
    for op in graph.ops:
        if op.phase == "forward":
            rule = row_of(op.name).rule
            if rule == "gather":
                tables.add(graph.owner(op.inputs[0]).id)
            elif rule == "matmul":
                factors.update(graph.owner(number).id for number in op.inputs)
    return any(graph.tensors[number].role == "parameter" for number in tables & factors)


def expected_time_error(graph: Graph, settings: Settings) -> float | None:
    """Mean relative error of predicted times of this kind of program that were left out of the fit.

    None if no published row of the kind, or of the framework, was at hand.
    """
    kind = kind_of(graph)
    if kind == BERT_PRETRAINING:
        measured = entries()["expected_error"]
    else:
        measured = entries()["expected_error_of_other_kinds"].get(kind, {"frameworks": ()})
    return float(measured["value"]) if settings.framework in measured["frameworks"] else None
