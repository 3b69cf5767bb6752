"""The convolutions of one poptorch.MultiConv, which form a single operation on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from ..poptorch_core import createBackendError


class MultiConvolution:
    """Counts the convolutions of an open poptorch.MultiConv.

    All of them run at once, so none may need another one's result: raises poptorch.Error.
    """

    def __init__(self) -> None:
        self.count = 0
        self._computed: set[int] = set()  # memory of what was computed from a convolution's result
        self._alive: list[torch.Tensor] = []  # so that memory isn't reused

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Before an operation. Returns whether `after` must be called with its result."""
        needs_one = any(_memory(tensor) in self._computed for tensor in _tensors((args, kwargs)))
        if func is not torch.ops.aten.convolution.default:
            return needs_one
        if needs_one:
            raise createBackendError(
                "poptorch.MultiConv: this convolution needs the result of another one in the same context, "
                "but all of them run at once. Move it out of the context."
            )
        self.count += 1
        return True

    def after(self, result: Any) -> None:
        """Notes the result of a convolution, or of an operation that needs one's result."""
        made = _tensors(result)
        self._alive += made
        self._computed |= {_memory(tensor) for tensor in made}


def _tensors(structure: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(structure)[0] if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
