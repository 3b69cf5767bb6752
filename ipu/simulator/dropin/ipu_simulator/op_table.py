"""The table of operations, ops.json: a row holds every fact about an operation that the simulator goes by.

Its readers decide what follows: the graph, the cost model and PopTorch's refusals. Names of Python functions
(torch.nn.functional.linear), which a program calls and which come down to operations, aren't in it.
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

    :param rule: matmul, convolution, gather, scatter, view or the name of a vertex (cost/vertices.json); ""
        where there is none.
    :param unsupported: the kind of operations that PopTorch lacks; "" for one that it may have.
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
    popart_type: str = ""
    unsupported: str = ""


_EMPTY = OpRow()


@functools.cache
def content() -> Mapping[str, Mapping[str, Any]]:
    """The file, as it is."""
    read: Mapping[str, Mapping[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return read


@functools.cache
def rows() -> Mapping[str, OpRow]:
    """By the operation's name: aten's without overload, and without the underscore of in-place ones."""
    return {
        name: OpRow(**{**row, "also_writes": tuple(row.get("also_writes", ()))})
        for name, row in content()["ops"].items()
    }


def row_of(name: str) -> OpRow:
    """The row of an operation; an empty one where the table has none."""
    return rows().get(name, _EMPTY)
