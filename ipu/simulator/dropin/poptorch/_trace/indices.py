"""Integers of 32 bits and fewer as indices and labels.

The device has no others; some of PyTorch's CPU kernels take nothing but 64 bits.
"""

from __future__ import annotations

from typing import Any

import torch

from .watch import Call

_LABELS, _INDEX = (1, "target"), (2, "index")
# Where the indices of a function stand, by its name: positional and by keyword.
_PLACES = {
    "cross_entropy": _LABELS,
    "gather": _INDEX,
    "index_copy": _INDEX,
    "index_copy_": _INDEX,
    "index_fill": _INDEX,
    "index_fill_": _INDEX,
    "multi_margin_loss": _LABELS,
    "multilabel_margin_loss": _LABELS,
    "nll_loss": _LABELS,
    "nll_loss_nd": _LABELS,
    "one_hot": (0, "tensor"),
    "put": (1, "index"),
    "put_": (1, "index"),
    "scatter": _INDEX,
    "scatter_": _INDEX,
    "scatter_add": _INDEX,
    "scatter_add_": _INDEX,
    "scatter_reduce": _INDEX,
    "scatter_reduce_": _INDEX,
    "take": (1, "index"),
    "take_along_dim": (1, "indices"),
}
_NARROW = frozenset({torch.int32, torch.int16, torch.int8, torch.uint8})


def widened(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict, bool]:
    """(args, kwargs, whether anything changed): indices and labels as the function's kernel takes them."""
    place = _PLACES.get(getattr(func, "__name__", ""))
    if place is None:
        return args, kwargs, False
    position, keyword = place
    if position < len(args):
        index = args[position]
        if isinstance(index, torch.Tensor) and index.dtype in _NARROW:
            return (*args[:position], index.long(), *args[position + 1 :]), kwargs, True
    elif isinstance(kwargs.get(keyword), torch.Tensor) and kwargs[keyword].dtype in _NARROW:
        return args, {**kwargs, keyword: kwargs[keyword].long()}, True
    return args, kwargs, False


def widen_indices(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listens to the calls of a model whose compilation met such indices (watch.py)."""
    args, kwargs, _ = widened(func, args, kwargs)
    return proceed(func, args, kwargs)
