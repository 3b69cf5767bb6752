"""Operations that a compiled model can't hold: shapes depend on values, or PopTorch has none of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Callable

import torch

# PyTorch's operation under each name that a call may go by.
_ATEN = {
    "argwhere": "nonzero",
    "masked_select": "masked_select",
    "nonzero": "nonzero",
    "unique": "_unique2",
    "unique_consecutive": "unique_consecutive",
}
_MASKS = (torch.bool, torch.uint8)
_WHY = "IPU programs cannot have dynamic shapes"
MASK_AS_INDEX = (
    "Indexing using boolean or byte tensor masks is unsupported because it would produce dynamic output "
    f"shapes based on the mask's data. {_WHY}: take torch.where, or assign to x[mask]."
)


def is_mask(index: Any) -> bool:
    """Whether an index says of each element whether it is taken."""
    return isinstance(index, torch.Tensor) and index.dtype in _MASKS


@functools.cache
def operations() -> frozenset[str]:
    """Operations that PopTorch surely has none of, by PyTorch's names: `_unsupported.json`."""
    kinds = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return frozenset(name for kind in kinds.values() for name in kind["operations"].split())


def reason(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_on_device: Callable[[torch.Tensor], bool]
) -> str | None:
    """Why a call can't be compiled, or None. Tensors of the host are constants, whose values are known."""

    def moves(argument: Any) -> bool:
        return isinstance(argument, torch.Tensor) and is_on_device(argument)

    name = getattr(func, "__name__", "")
    if name in ("__getitem__", "__setitem__"):
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        slices = [part for part in parts if isinstance(part, slice)]
        if any(moves(bound) for part in slices for bound in (part.start, part.stop, part.step)):
            return (
                "aten::item is only supported in eager mode, and the bounds of a slice are read by it. "
                "poptorch.dynamic_slice and dynamic_update take a place from a tensor."
            )
        if name == "__getitem__" and any(moves(part) and is_mask(part) for part in parts):
            return MASK_AS_INDEX
    subject = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
    if name == "one_hot" and moves(subject):
        classes = kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
        return "OneHot num classes must be specified and must be constant." if classes == -1 else None
    operation = _ATEN.get(name) if moves(subject) else None
    if name == "where" and len(args) == 1 and not kwargs and moves(subject):
        operation = "nonzero"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else subject)
        operation = name if moves(repeats) else None
    if operation is None:
        return None
    return (
        f"Unsupported ops found in compiled model: [aten::{operation}]. The shape of its result depends on "
        f"values. {_WHY}."
    )
