"""Operations that a compiled model can't hold: shapes that depend on values, complex numbers."""

from __future__ import annotations

from typing import Any

import torch

# PyTorch's operation under each name that a call may go by.
_ATEN = {
    "argwhere": "nonzero",
    "masked_select": "masked_select",
    "nonzero": "nonzero",
    "unique": "_unique2",
    "unique_consecutive": "unique_consecutive",
}
_WHY = "IPU programs cannot have dynamic shapes"


def reason(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a call can't be compiled, or None. `args`: the first one is on the device."""
    name = getattr(func, "__name__", "")
    if name == "__getitem__" and _has_mask(args[1]):
        return (
            "Indexing using boolean or byte tensor masks is unsupported because it would produce dynamic "
            f"output shapes based on the mask's data. {_WHY}: take torch.where, or assign to x[mask]."
        )
    if name == "one_hot" and kwargs.get("num_classes", args[1] if len(args) > 1 else -1) == -1:
        return "OneHot num classes must be specified and must be constant."
    operation = _ATEN.get(name)
    if name == "where" and len(args) + len(kwargs) == 1:
        operation = "nonzero"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else args[0])
        operation = "repeat_interleave" if isinstance(repeats, torch.Tensor) else None
    if operation is None:
        return None
    return (
        f"Unsupported ops found in compiled model: [aten::{operation}]. The shape of its result depends on "
        f"values. {_WHY}."
    )


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)
