"""A training model's host side: wrapped in place, so that every touch sees the device's latest weights.

Wrapping swaps classes and nothing else: model, parameters and buffers stay the same objects. The new
classes are made for one wrapping and hold its state.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from typing import Any, Callable, Iterator

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .._logging import logger
from .._trace import run as trace
from ..poptorch_core import createPoptorchError

# Attributes of a model through which its weights are reached; its other attributes are left alone.
_REACHES_WEIGHTS = frozenset({"_buffers", "_modules", "_parameters", "forward", "state_dict"})


class HostWeights:
    """The host's copy of the weights: whether the device has newer ones, and how often it was renewed."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.stale = False
        self.version = 0
        self.running = False  # while a run has the device's data in the model, nothing is fetched

    def sync(self) -> bool:
        """Download if the device has newer weights; returns whether it did."""
        if not self.stale or self.running:
            return False
        logger.debug("Implicit copyWeightsToHost()")
        self.executor.copyWeightsToHost()
        return True


class _PoptorchTensor:
    """Mixed into a wrapped tensor's class: downloads before anything looks at the tensor."""

    __slots__ = ()
    _poptorch_host: _Hosts
    _poptorch_base: type

    def __getattribute__(self, name):
        if name != "__class__":
            type(self)._poptorch_host.sync()
        return super().__getattribute__(name)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls._poptorch_host.sync()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with as_original_class(self):
                memo[id(self)] = copy.deepcopy(self, memo)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        with as_original_class(self):
            return self.__reduce_ex__(protocol)

    def __repr__(self):
        with as_original_class(self):
            return repr(self)


class PoptorchParameter(_PoptorchTensor, torch.nn.Parameter):
    """A wrapped parameter."""


class PoptorchBuffer(_PoptorchTensor, torch.Tensor):
    """A wrapped buffer."""


def is_wrapped(thing: Any) -> bool:
    """Whether a model or tensor has one of the classes made here."""
    return hasattr(type(thing), "_poptorch_host")


_new_parameter = torch.nn.Parameter.__new__


def _new_parameter_of_any(cls, data=None, requires_grad=True):
    # PyTorch takes tensors of other classes only where detach() keeps the class.
    plain = data.detach() if data is not None and is_wrapped(data) else data
    return _new_parameter(cls, plain, requires_grad)


torch.nn.Parameter.__new__ = staticmethod(_new_parameter_of_any)


def _set_class(thing: Any, class_: type) -> None:
    # Past the class's own __setattr__: TorchScript's hands everything on to another object.
    object.__setattr__(thing, "__class__", class_)


@contextlib.contextmanager
def as_original_class(thing: Any) -> Iterator[None]:
    """Inside, a wrapped model or tensor has its own class again, with fresh weights."""
    wrapped = type(thing)
    wrapped._poptorch_host.sync()
    _set_class(thing, wrapped._poptorch_base)
    try:
        yield
    finally:
        _set_class(thing, wrapped)


class _Hosts:
    """Those of a tensor that several training models share."""

    def __init__(self, hosts: list[HostWeights]) -> None:
        self.all = hosts

    def sync(self) -> None:
        """See HostWeights."""
        for host in self.all:
            host.sync()


def original_class(tensor: torch.Tensor) -> type:
    """A tensor's class when no model has wrapped it."""
    return type(tensor)._poptorch_base if is_wrapped(tensor) else type(tensor)


def _set_hosts(tensor: torch.Tensor, kind: type, hosts: list[HostWeights]) -> None:
    base = original_class(tensor)
    bases = (kind,) if base in kind.__mro__ else (kind, base)
    members = {"_poptorch_host": _Hosts(hosts), "_poptorch_base": base}
    tensor.__class__ = type(kind.__name__, bases, members) if hosts else base


def _hosts(tensor: torch.Tensor) -> list[HostWeights]:
    return type(tensor)._poptorch_host.all if is_wrapped(tensor) else []


def _model_class(base: type, host: HostWeights) -> type:
    def getattribute(self, name):
        if name in _REACHES_WEIGHTS:
            host.sync()
        elif name == "destroy":
            return host.executor.destroy
        return base.__getattribute__(self, name)

    def getattr_(self, name):
        # Parameters, buffers and submodules aren't ordinary attributes.
        host.sync()
        return base.__getattr__(self, name)

    def deepcopy(self, memo):
        with as_original_class(self):
            return copy.deepcopy(self, memo)

    def reduce_ex(self, protocol):
        # From protocol 2 on, pickle insists that an object has the class that it will be rebuilt with.
        with as_original_class(self):
            return self.__reduce_ex__(1)

    return type(
        f"Poptorch{base.__name__}",
        (base,),
        {
            "_poptorch_host": host,
            "_poptorch_base": base,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "__getattribute__": getattribute,
            "__getattr__": getattr_,
            "__deepcopy__": deepcopy,
            "__reduce_ex__": reduce_ex,
        },
    )


def shallow_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A model of the original class with the same submodules and tensors, and attributes of its own."""
    original = type(model)._poptorch_base if is_wrapped(model) else type(model)
    duplicate = original.__new__(original)
    duplicate.__dict__.update(model.__dict__)
    return duplicate


def check_buffers(model: torch.nn.Module) -> None:
    """Raise poptorch.Error for a buffer that is more than a plain tensor."""
    for buffer in model.buffers():
        if original_class(buffer) is not torch.Tensor:
            raise createPoptorchError(f"All buffers must be an instance of torch.Tensor (Got {type(buffer)})")


def wrap(model: torch.nn.Module, host: HostWeights) -> None:
    """Wrap `model` in place. RuntimeError if it is wrapped already."""
    if is_wrapped(model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model "
            "to unwrap before wrapping again."
        )
    for kind, members in ((PoptorchParameter, model.parameters()), (PoptorchBuffer, model.buffers())):
        for tensor in members:
            _set_hosts(tensor, kind, [*_hosts(tensor), host])
    _set_class(model, _model_class(type(model), host))


def unwrap(model: torch.nn.Module) -> None:
    """Give `model` and its tensors their own classes back."""
    if not is_wrapped(model):
        return
    host = type(model)._poptorch_host
    host.sync()
    for kind, members in ((PoptorchParameter, model.parameters()), (PoptorchBuffer, model.buffers())):
        for tensor in members:
            _set_hosts(tensor, kind, [other for other in _hosts(tensor) if other is not host])
    _set_class(model, type(model)._poptorch_base)


# Wrapped classes of models that were unwrapped for a while.
_set_aside: weakref.WeakKeyDictionary[torch.nn.Module, HostWeights] = weakref.WeakKeyDictionary()


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Give a wrapped model its own class back until rewrapModelIfNecessary."""
    if is_wrapped(model):
        _set_aside[model] = type(model)._poptorch_host
        unwrap(model)


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Wrap a model again that unwrapModelIfNecessary unwrapped."""
    if model in _set_aside:
        wrap(model, _set_aside.pop(model))


def isDispatchTracing() -> bool:
    """Whether a model runs on the device right now."""
    return trace.isRunningOnIpu()


# Compile hooks.
class _RemovableHook:
    """Takes a hook off again."""

    def __init__(self, hooks: dict[int, Callable[[], Any]], key: int) -> None:
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """The hook isn't called any more."""
        self._hooks.pop(self._key, None)


pre_compile_hooks: dict[int, Callable[[], Any]] = {}
post_compile_hooks: dict[int, Callable[[], Any]] = {}
_next_hook = iter(range(2**63)).__next__


def _register(hooks: dict[int, Callable[[], Any]], hook: Callable[[], Any], kind: str) -> _RemovableHook:
    if not callable(hook):
        raise RuntimeError(f"{kind} hook must be callable")
    key = _next_hook()
    hooks[key] = hook
    return _RemovableHook(hooks, key)


def registerPreCompileHook(hook: Callable[[], Any]) -> _RemovableHook:
    """Call `hook()` before every compilation; the handle's remove() ends it. RuntimeError if not callable."""
    return _register(pre_compile_hooks, hook, "Pre-compile")


def registerPostCompileHook(hook: Callable[[], Any]) -> _RemovableHook:
    """Call `hook()` after every compilation; the handle's remove() ends it. RuntimeError if not callable."""
    return _register(post_compile_hooks, hook, "Post-compile")


# A model's outputs: plain tensors that are told from others, since backward() can't be called on them.
#
# The mark isn't on the tensors themselves: what they are saved, pickled and copied with stays PyTorch's own.

_outputs = WeakTensorKeyDictionary()
_backward = torch.Tensor.backward


def mark(tensor: torch.Tensor) -> None:
    """From now on the tensor refuses backward(), with poptorch.Error."""
    _outputs[tensor] = True


@functools.wraps(_backward)
def _backward_but_on_outputs(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    if self in _outputs:
        raise createPoptorchError(
            "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a "
            "trainingModel, the backwards pass is performed automatically when invoking the model. If you're "
            "using an inferenceModel, you should use a trainingModel instead."
        )
    return _backward(self, *args, **kwargs)


torch.Tensor.backward = _backward_but_on_outputs
