"""Where tensors are while a model is compiled: on the device, or on the host.

On the device are the model's inputs, parameters and buffers, tensors that the forward creates there or moves
there, and everything computed from these. All other tensors are on the host: plain attributes, tensors in
closures, results of `torch.from_numpy`. PopTorch refuses operations of a device tensor with one of the host.

A tensor is where its memory is, so that a view is where its base is.
"""

from __future__ import annotations

from typing import Any, Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .._run.structure import tensors


class Residence:
    """Knows where each tensor of one compilation is.

    :param on_device: inputs, parameters and buffers.
    """

    def __init__(self, on_device: Iterable[torch.Tensor]) -> None:
        # Weak references keep a storage's address from being used again, but not its memory.
        self._device: set[StorageWeakRef] = set()
        self._host: set[StorageWeakRef] = set()  # of calls' arguments, and of what is computed from them
        self._temporary: set[StorageWeakRef] = set()  # of the device, made inside calls
        self.mark_on_device(on_device)

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the device."""
        storage = _storage(tensor)
        if storage is None or storage in self._device or storage in self._temporary:
            return True
        return tensor.grad_fn is not None and storage not in self._host

    def is_held(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the device, and no temporary one of PyTorch's."""
        storage = _storage(tensor)
        return storage is None or storage in self._device

    def is_on_host(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor that a call took or gave is on the host."""
        return _storage(tensor) in self._host

    def mark_on_device(self, tensors: Iterable[torch.Tensor]) -> None:
        """The program holds these tensors, which are on the device."""
        storages = _storages(tensors)
        self._device |= storages
        self._host -= storages

    def mark_on_host(self, tensors: Iterable[torch.Tensor]) -> None:
        """Of these tensors, those that aren't on the device are on the host."""
        self._host |= _storages(tensors) - self._device - self._temporary

    def misplaced(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The host's tensor that an operation combines with one of the device; None if there is none.

        PyTorch itself moves what is copied into a device tensor, and a number that is written at indices. It
        wants the lengths of a packed sequence on the host.
        """
        if name == "_pack_padded_sequence":
            return None
        found = tensors((list(args), dict(kwargs)))
        host = [tensor for tensor in found if self.is_on_host(tensor)]
        if len(host) == len(found):
            return None
        if name == "copy" and host and found[0] is not host[0]:
            return None
        if name == "index_put" and host and host[-1] is args[2] and not args[2].dim():
            del host[-1]
        return host[0] if host else None

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """What an operation computes from the host's tensors alone is on the host too."""
        found = _storages(tensors((list(args), dict(kwargs))))
        made = _storages(tensors(result))
        if found and found <= self._host:
            self._host |= made
        else:
            self._temporary |= made - self._device
            self._host -= made


def _storages(tensors: Iterable[torch.Tensor]) -> set[StorageWeakRef]:
    return {storage for tensor in tensors if (storage := _storage(tensor)) is not None}


def _storage(tensor: torch.Tensor) -> StorageWeakRef | None:
    """A tensor's storage; None for one without (functorch's, sparse tensors, zero tensors)."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor._is_zerotensor():
        return None
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):
        return None
