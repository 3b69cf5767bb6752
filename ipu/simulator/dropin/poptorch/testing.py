"""Comparison of nested results."""

from __future__ import annotations

from typing import Any

import torch


def allclose(ref: Any, other: Any) -> bool:
    """torch.allclose over nested tuples and lists; plain values must be equal.

    As in PopTorch, the tolerance is relative to `ref`, torch.allclose's second argument.
    """
    if isinstance(ref, (tuple, list)):
        same_kind = isinstance(other, (tuple, list)) and len(ref) == len(other)
        return same_kind and all(allclose(a, b) for a, b in zip(ref, other))
    if isinstance(ref, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.allclose(other, ref)
    return bool(ref == other)
