"""Dispatched operations: the modes that see them, and their arguments and results, which are tensors and
numbers in lists, tuples and dictionaries.

As torch.utils._pytree, whose generality costs more than a small operation. A torch.Size is one value.
"""

from __future__ import annotations

from typing import Any, Callable, List

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class OperationMode(TorchDispatchMode):
    """A dispatch mode whose first operation doesn't import torch's compiler."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True (torch 2.8 and later) imports torch._dynamo, which takes a second, to switch it off in there.
        return False


def leaves(value: Any) -> List[Any]:
    """All values in it, in order."""
    found: List[Any] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: List[Any]) -> None:
    kind = type(value)
    if kind is tuple or kind is list:
        for part in value:
            _collect(part, found)
    elif kind is dict:
        for part in value.values():
            _collect(part, found)
    else:
        found.append(value)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure, with `function` applied to each value."""
    kind = type(value)
    if kind is tuple:
        return tuple([mapped(function, part) for part in value])
    if kind is list:
        return [mapped(function, part) for part in value]
    if kind is dict:
        return {key: mapped(function, part) for key, part in value.items()}
    return function(value)


def mapped_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """`mapped`, of tensors only."""
    return mapped(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)
