"""The table of calls, calls.json: a row holds every fact about a Python function of PyTorch.

Rows are found by a function's name, because torch, torch.nn.functional and torch._C._nn have different
objects for the same function.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

_FILE = Path(__file__).with_name("calls.json")


@dataclass(frozen=True)
class CallRow:
    """A Python function of PyTorch; the file explains its fields.

    :param mixed: "" where PyTorch's own type for float16 and float32 operands is the device's.
    :param indices: None where no argument holds indices.
    """

    loss: bool = False
    loss_nodes: tuple[str, ...] = ()
    mixed: str = ""
    running_statistics: bool = False
    without_float16: bool = False
    saturates: bool = False
    indices: tuple[int, str] | None = None
    dynamic_shape: str = ""
    may_do_nothing: bool = False
    creates: bool = False
    reads_values: bool = False
    refused: tuple[Mapping[str, Any], ...] = ()


_EMPTY = CallRow()


@functools.cache
def rows() -> Mapping[str, CallRow]:
    """By the function's name."""
    calls = json.loads(_FILE.read_text(encoding="utf-8"))["calls"]
    return {name: _row(fields) for name, fields in calls.items()}


def _row(fields: Mapping[str, Any]) -> CallRow:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return CallRow(**values)


def row_of(func: Any) -> CallRow:
    """The row of a function; an empty one where the table has none."""
    return row_named(getattr(func, "__name__", ""))


def row_named(name: str) -> CallRow:
    """The row of a function's name; an empty one where the table has none."""
    return rows().get(name, _EMPTY)
