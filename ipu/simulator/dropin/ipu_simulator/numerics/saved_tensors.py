"""In-place operations on tensors that the backward pass needs.

An IPU's graph has values, not memory: an in-place operation makes a new value, and gradients use the old one.
PyTorch overwrites the memory, notices in the backward pass, and raises "... has been modified by an inplace
operation". Here a saved tensor gives way before it is overwritten: the backward pass reads a copy instead.

PyTorch's allow_mutation_on_saved_tensors does so too, but looks for saved tensors by the address of their
first element: it misses a write into a part of one, and gives a wrong gradient.
"""

from __future__ import annotations

import weakref
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from .float16_products import operator_of
from .nested import OperationMode, leaves


class _Saved:
    """What a node of autograd's graph holds instead of a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class SavedTensors(OperationMode):
    """Inside, forward and backward, in-place operations leave gradients as they are. Enter it once.

    :param copied: makes the copy of a saved tensor that is about to be overwritten.

    `has_copied`: whether an operation overwrote a saved tensor.
    """

    def __init__(self, copied: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> None:
        super().__init__()
        self.has_copied = False
        self._copied = copied
        self._in_storage: Dict[int, weakref.WeakSet[_Saved]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.__exit__()
        # A node that saves its result is a cycle that Python's garbage collector can't see. A backward pass
        # breaks it; a forward may have had none.
        for group in self._in_storage.values():
            for saved in group:
                del saved.tensor
        self._in_storage.clear()

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor)
        storage = storage_of(tensor)
        if storage is not None:
            self._in_storage.setdefault(storage, weakref.WeakSet()).add(saved)
        return saved

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = operator_of(func)
        if operator.writes or operator.writes_named:
            places: List[Any] = [args[index] for index in operator.writes if index < len(args)]
            places += [kwargs[name] for name in operator.writes_named if name in kwargs]
            for leaf in leaves(places):
                if isinstance(leaf, torch.Tensor):
                    self._give_way(leaf)
        return func(*args, **kwargs)

    def _give_way(self, written: torch.Tensor) -> None:
        storage = storage_of(written)
        copies: Dict[int, torch.Tensor] = {}
        for saved in self._in_storage.pop(storage, ()) if storage is not None else ():
            key = id(saved.tensor)
            if key not in copies:
                copies[key] = self._copied(saved.tensor)
            saved.tensor = copies[key]
            self.has_copied = True


def storage_of(tensor: torch.Tensor) -> Optional[int]:
    """Identifies the storage that a tensor shares with its views, while it lives; None without one."""
    if tensor.layout is not torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    return int(tensor.untyped_storage()._cdata)
