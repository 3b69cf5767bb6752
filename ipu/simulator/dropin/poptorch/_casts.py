"""Implicit casts: an operation on float16 and float32 operands computes in float32.

PyTorch promotes in arithmetic but refuses the same mixture in products and normalisations.
"""

from __future__ import annotations

from typing import Any, Iterable

import torch
from torch.overrides import TorchFunctionMode

from ._structure import map_leaves, tensors

_REFUSED_BY_PYTORCH = frozenset(
    {
        "__matmul__",
        "__rmatmul__",
        "addbmm",
        "addmm",
        "addmv",
        "baddbmm",
        "batch_norm",
        "bilinear",
        "bmm",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "dot",
        "einsum",
        "group_norm",
        "instance_norm",
        "layer_norm",
        "linear",
        "matmul",
        "mm",
        "mv",
        "scaled_dot_product_attention",
    }
)


class ImplicitCasts(TorchFunctionMode):
    """Inside, float16 operands become float32 where they meet float32 ones."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _REFUSED_BY_PYTORCH:
            dtypes = {tensor.dtype for tensor in tensors((list(args), dict(kwargs)))}
            if torch.float16 in dtypes and torch.float32 in dtypes:
                args, kwargs = map_leaves((tuple(args), dict(kwargs)), _widened)
        return func(*args, **kwargs)


def holds_float16(operands: Iterable[torch.Tensor]) -> bool:
    """Whether a program on these tensors can mix types at all; others are spared the look at every call."""
    return any(tensor.dtype is torch.float16 for tensor in operands)


def _widened(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float16 else leaf
