"""Group norm under PopART's option groupNormStridedChannelGrouping.

PyTorch's group g of G is the g-th run of consecutive channels. With the option, it is the channels g, g + G,
g + 2G, ...: faster on an IPU, and another function of the same weights (poplibs, option of popnn's group
norm). Here the channels are reordered around PyTorch's group norm, which changes no value otherwise.
Compilation needs no values, so this listener is one of later runs only.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from . import Call


def _group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, *_: Any, **__: Any
) -> None:
    """The leading parameters of both functions."""


_SIGNATURE = inspect.signature(_group_norm)
_GROUP_NORMS = frozenset({torch.group_norm, torch.nn.functional.group_norm})


def on_call(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listener for calls (watch.py)."""
    if func not in _GROUP_NORMS:
        return proceed(func, args, kwargs)
    bound = _SIGNATURE.bind(*args, **kwargs)
    given, groups = bound.arguments, bound.arguments["num_groups"]
    if given["input"].shape[1] % groups:
        return proceed(func, args, kwargs)  # PyTorch's error
    for name, dim in (("input", 1), ("weight", 0), ("bias", 0)):
        if given.get(name) is not None:
            given[name] = _transposed(given[name], dim, -1, groups)
    return _transposed(proceed(func, bound.args, bound.kwargs), 1, groups, -1)


def _transposed(tensor: torch.Tensor, dim: int, rows: int, columns: int) -> torch.Tensor:
    """Reorders a dimension as the transposition of a matrix with its elements."""
    matrix: torch.Tensor = tensor.unflatten(dim, (rows, columns))
    return matrix.transpose(dim, dim + 1).flatten(dim, dim + 1)
