"""What a compiling run watches: which tensors are the device's, what a graph can't hold, what makes what."""

from __future__ import annotations

from typing import Any, Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import _trace
from ._callers import called_by_library
from ._index_casts import widened
from ._ipu_device import asks_for_device, device_answer, placed
from ._logging import logger
from ._losses import LossTap
from ._structure import tensors
from ._unsupported import MASK_AS_INDEX, is_mask, operations, reason
from .poptorch_core import createBackendError

# What makes a tensor of none; torch's own modules give their device where it matters.
_NAMES = "arange empty eye full linspace logspace ones rand randint randn randperm tensor zeros"
_FACTORIES = frozenset(getattr(torch, name) for name in _NAMES.split())
# What needs a tensor's value, which a trace hasn't got.
_READS_VALUES = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        "item tolist numpy is_nonzero __array__ __bool__ __complex__ __contains__ __float__ __format__ "
        "__index__ __int__"
    ).split()
) | {torch.is_nonzero}
_NO_VALUES = "aten::item is only supported in eager mode, but was called while the model was traced."
_COMPARES_VALUES = frozenset({torch.allclose, torch.equal, torch.Tensor.allclose, torch.Tensor.equal})


class CompileTap(LossTap):
    """Stands around the compiling run. `sources`: what each tensor was made of, by its id.

    Raises poptorch.Error for what the device can't do: values read, moves to the host, empty tensors, shapes
    that depend on values, complex numbers.
    """

    def __init__(self, on_device: Iterable[torch.Tensor] = ()) -> None:
        """`on_device`: inputs, weights and buffers, which are on the device from the start."""
        super().__init__()
        self._computes = False  # whether a call under way has a tensor of the device
        self._on_device = {id(tensor) for tensor in on_device}
        self.has_narrow_indices = False
        self.names_ipu = False
        self._ipus: list[object] = []
        self._warned_of: set[str] = set()
        self.sources: dict[int, list[torch.Tensor]] = {}
        self._alive: list[torch.Tensor] = []  # so that no id is used twice

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._reads_value(func, args):
            raise createBackendError(_NO_VALUES)
        if asks_for_device(func) and self.is_on_device(args[0]):
            if not called_by_library():
                self.names_ipu = True
                return device_answer(func)
            # In `y.to(x.device)` this stands for the IPU, although it reads "cpu" here.
            answer = func(*args)
            self._ipus.append(answer)
            return answer
        to_host = func is torch.Tensor.cpu or (func is torch.Tensor.to and self._names_cpu(args, kwargs))
        if to_host and self.is_on_device(args[0]):
            raise createBackendError("Illegal move to CPU (via .cpu() or .to('cpu')) when tracing a model.")
        if func in _FACTORIES and kwargs.get("device") is None:
            self._warn_of_factory(func)
        func, args, kwargs, moved = placed(func, args, kwargs)
        self.names_ipu |= moved
        inputs = tensors((list(args), dict(kwargs)))
        self._refuse_unsupported(func, args, kwargs)
        args, kwargs, changed = widened(func, args, kwargs)
        self.has_narrow_indices |= changed
        self._computes = any(self.is_on_device(tensor) for tensor in inputs)
        result = super().__torch_function__(func, types, args, kwargs)
        self._computes = False
        for made in tensors(result):
            if 0 in made.shape and not called_by_library():  # a class of its own may mean another numel
                raise createBackendError(
                    f"Zero-sized tensors are unsupported (Got shape {list(made.shape)})."
                )
            self.sources.setdefault(id(made), []).extend(inputs)
            if made.is_complex():
                raise createBackendError(f"Complex numbers are unsupported (Got {made.dtype}).")
            # What is made of host tensors alone stays on the host.
            if moved or not inputs or any(self.is_on_device(tensor) for tensor in inputs):
                self._on_device.add(id(made))
            self._alive.append(made)
        return result

    def _reads_value(self, func, args) -> bool:
        if func is torch.Tensor.__format__ and args[0].dim() > 0:
            return False  # prints all of it
        if func not in _READS_VALUES | _COMPARES_VALUES or not self.is_on_device(args[0]):
            return False
        if func is torch.Tensor.item or not called_by_library():
            return True
        self._follow_values()
        return False

    def _refuse_unsupported(self, func, args, kwargs) -> None:
        why = reason(func, args, kwargs, self.is_on_device)
        if why is not None:
            self._refuse_unless_library(why)

    def _refuse_unless_library(self, why: str) -> None:
        if not called_by_library():
            raise createBackendError(why)
        self._follow_values()

    def _follow_values(self) -> None:
        """What a library reads from tensors, its Python has to read in each run."""
        run = _trace.current()
        if isinstance(run, _trace.Trace):
            run.follows_values = True

    def below(self) -> TorchDispatchMode:
        """Stands around the same forward, and sees the operations that its calls come down to."""
        return _Below(self)

    def refuse_operation(self, name: str, args: tuple[Any, ...]) -> None:
        """Raise poptorch.Error for an operation that PopTorch hasn't got, and for a value read in passing."""
        if not _trace.isRunningOnIpu():
            return  # the host's work in the middle of a run
        on_device = [self.is_on_device(arg) for arg in args if isinstance(arg, torch.Tensor)]
        if name in operations() and (self._computes or any(on_device)):
            raise createBackendError(f"Unsupported ops found in compiled model: [aten::{name}].")
        if name == "index" and any(is_mask(part) and self.is_on_device(part) for part in args[1]):
            self._refuse_unless_library(MASK_AS_INDEX)  # older PyTorchs show a mode no __getitem__
        if name == "_local_scalar_dense" and all(on_device) and not called_by_library():
            raise createBackendError(_NO_VALUES)

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor was there from the start or made by the model; others are the host's."""
        return id(tensor) in self._on_device or tensor.requires_grad

    def mark_on_device(self, made: list[torch.Tensor], of: list[torch.Tensor]) -> None:
        """These come to the device although no operation seen here made them (of others)."""
        self._on_device |= {id(tensor) for tensor in made}
        for tensor in made:
            self.sources.setdefault(id(tensor), []).extend(of)
        self._alive += made

    def _names_cpu(self, args, kwargs) -> bool:
        target = kwargs.get("device", args[1] if len(args) > 1 else None)
        if any(target is device for device in self._ipus) or not isinstance(target, (str, torch.device)):
            return False
        return torch.device(target).type == "cpu" and not called_by_library()

    def _warn_of_factory(self, func) -> None:
        if func.__name__ not in self._warned_of and not called_by_library():
            self._warned_of.add(func.__name__)
            logger.warning(
                "No device set in torch.%s(): forcing to IPU. Give it the device of another tensor "
                "(device=x.device) to say so.",
                func.__name__,
            )


class _Below(TorchDispatchMode):
    def __init__(self, tap: CompileTap) -> None:
        super().__init__()
        self._tap = tap

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._tap.refuse_operation(func._schema.name.partition("::")[2], args)
        return func(*args, **(kwargs or {}))
