"""The table of operations, ops.json: a row holds every fact about an operation that the simulator goes by.

Its readers decide what follows: graphs, the cost model, float16 arithmetic and PopTorch's IR. What PopTorch
compiles is in poptorch/_trace/supported.json. The Python functions that programs call and that dispatch
operations (torch.nn.functional.linear) are in poptorch/_trace/calls.json.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

FILE = Path(__file__).with_name("ops.json")


@dataclass(frozen=True)
class OpRow:
    """An operation; the file explains its fields.

    :param rule: matmul, convolution, gather, scatter, sort, view or the name of a vertex
        (cost/vertices.json); "" where there is none.
    """

    rule: str = ""
    in_place: bool = False
    operands_in_layout: bool = False
    keeps_order: bool = False
    reorders: bool = False
    drawn_again: int | None = None
    into_accumulator: bool = False
    sums_gradients: bool = False
    fused_into: str = ""
    same_as: str = ""
    alias: bool = False
    random: bool = False
    uninitialised: bool = False
    shapes_only: bool = False
    also_writes: tuple[int, ...] = ()
    copies: bool = False
    drawn_natively: bool = False
    adds_in_float16: bool = False
    float32_outputs: tuple[int, ...] = ()
    takes_float32: bool = False
    slow_in_float16: bool = False
    signals_nan: bool = False
    popart_type: str = ""


_EMPTY = OpRow()


@functools.cache
def content() -> Mapping[str, Mapping[str, Any]]:
    """The file, as it is."""
    read: Mapping[str, Mapping[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return read


@functools.cache
def rows() -> Mapping[str, OpRow]:
    """By the operation's name: aten's without overload, and without the underscore of in-place ones."""
    return {name: _row(fields) for name, fields in content()["ops"].items()}


def _row(fields: Mapping[str, Any]) -> OpRow:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return OpRow(**values)


def row_of(name: str) -> OpRow:
    """The row of an operation; an empty one where the table has none."""
    return rows().get(name, _EMPTY)
