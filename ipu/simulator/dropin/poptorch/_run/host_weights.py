"""The host's side of a model: wrapped training models, marked outputs, and torch.inference_mode.

trainingModel wraps the user's model in place, so that any access to its weights first downloads newer ones
from the device. Wrapping only swaps `__class__`: model, parameters and buffers stay the same objects. The
new classes are created for each wrapping and hold its state.

Outputs are plain tensors on which backward() is refused. They are marked in a weak dictionary, not by an
attribute, so that saving, pickling and copying them stays PyTorch's.

An executor's methods run outside the program's torch.inference_mode.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ClassVar,
    Concatenate,
    Iterator,
    ParamSpec,
    Protocol,
    Sequence,
    SupportsIndex,
    TypeVar,
)

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .._logging import logger
from ..poptorch_core import createPoptorchError

if TYPE_CHECKING:
    _Mixed = torch.Tensor
else:
    _Mixed = object

# Attributes that give access to a model's weights: reading them downloads first.
_REACHES_WEIGHTS = frozenset({"_buffers", "_modules", "_parameters", "forward", "state_dict"})


class TrainingExecutor(Protocol):
    """The executor that trains a wrapped model."""

    def copyWeightsToHost(self) -> None:
        """Downloads the weights into the model."""

    def destroy(self) -> None:
        """Drops the executable and unwraps the model."""


# Numbers of downloads, unique in the process.
_downloads = itertools.count(1)
NEVER_DOWNLOADED = 0


class HostWeights:
    """State of the host's weights: `stale` if the device has newer ones; `version` numbers the download."""

    def __init__(self, executor: TrainingExecutor) -> None:
        self.executor = executor
        self.stale = False
        self.version = NEVER_DOWNLOADED
        self.running = False  # during a run the model holds the device's data: no downloads

    def sync(self) -> bool:
        """Downloads if the device has newer weights; returns whether it did."""
        if not self.stale or self.running:
            return False
        logger.debug("Implicit copyWeightsToHost()")
        self.executor.copyWeightsToHost()
        return True

    def downloaded(self) -> None:
        """Notes a download."""
        self.stale = False
        self.version = next(_downloads)


class _Hosts:
    """The HostWeights of all training models that share a tensor."""

    def __init__(self, hosts: list[HostWeights]) -> None:
        self.all = hosts

    def sync(self) -> None:
        """Downloads from each model that has newer weights."""
        for host in self.all:
            host.sync()


class _PoptorchTensor(_Mixed):
    """Mixin of a wrapped tensor's class: downloads before any access to the tensor."""

    __slots__ = ()
    _poptorch_host: ClassVar[_Hosts]
    _poptorch_base: ClassVar[type]

    def __getattribute__(self, name: str) -> Any:
        if name != "__class__":
            type(self)._poptorch_host.sync()
        return super().__getattribute__(name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cls._poptorch_host.sync()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with as_original_class(self):
                memo[id(self)] = copy.deepcopy(self, memo)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        with as_original_class(self):
            return self.__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        with as_original_class(self):
            return repr(self)


class PoptorchParameter(_PoptorchTensor, torch.nn.Parameter):  # type: ignore[misc]  # its __repr__
    """A wrapped parameter."""


class PoptorchBuffer(_PoptorchTensor, torch.Tensor):
    """A wrapped buffer."""


def is_wrapped(thing: Any) -> bool:
    """Whether a model or tensor is wrapped."""
    return hasattr(type(thing), "_poptorch_host")


def original_class(thing: torch.Tensor | torch.nn.Module) -> type:
    """The class that a tensor or model has when it isn't wrapped."""
    wrapped: Any = type(thing)
    return wrapped._poptorch_base if is_wrapped(thing) else type(thing)


def host_of(model: torch.nn.Module) -> HostWeights | None:
    """The state of a wrapped model's weights; None if the model isn't wrapped."""
    wrapped: Any = type(model)
    return wrapped._poptorch_host if is_wrapped(model) else None


def hosts_of(model: torch.nn.Module) -> list[HostWeights]:
    """States of the training models that share a parameter or buffer with an unwrapped model."""
    tensors = [*model.parameters(), *model.buffers()]
    return list(dict.fromkeys(host for tensor in tensors for host in _hosts(tensor)))


@contextlib.contextmanager
def no_downloads(hosts: Sequence[HostWeights]) -> Iterator[None]:
    """Context of a run, in which the model's tensors hold the device's data."""
    for host in hosts:
        host.running = True
    try:
        yield
    finally:
        for host in hosts:
            host.running = False


def _hosts(tensor: torch.Tensor) -> list[HostWeights]:
    wrapped: Any = type(tensor)
    return wrapped._poptorch_host.all if is_wrapped(tensor) else []


def _set_class(thing: Any, class_: type) -> None:
    # Bypasses the class's __setattr__: TorchScript's forwards to another object.
    object.__setattr__(thing, "__class__", class_)


@contextlib.contextmanager
def as_original_class(thing: Any) -> Iterator[None]:
    """Context: a wrapped model or tensor has its original class, with downloaded weights."""
    wrapped: Any = type(thing)
    wrapped._poptorch_host.sync()
    _set_class(thing, wrapped._poptorch_base)
    try:
        yield
    finally:
        _set_class(thing, wrapped)


@contextlib.contextmanager
def as_original_classes(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Context: tensors, wrapped or not, have their original classes; nothing is downloaded."""
    classes = [type(tensor) for tensor in tensors]
    for tensor in tensors:
        tensor.__class__ = original_class(tensor)
    try:
        yield
    finally:
        for tensor, class_ in zip(tensors, classes):
            tensor.__class__ = class_


def _set_hosts(tensor: torch.Tensor, kind: type, hosts: list[HostWeights]) -> None:
    base = original_class(tensor)
    bases = (kind,) if base in kind.__mro__ else (kind, base)
    members = {"_poptorch_host": _Hosts(hosts), "_poptorch_base": base}
    tensor.__class__ = type(kind.__name__, bases, members) if hosts else base


def _model_class(base: Any, host: HostWeights) -> type:
    def getattribute(self: Any, name: str) -> Any:
        if name in _REACHES_WEIGHTS:
            host.sync()
        elif name == "destroy":
            return host.executor.destroy
        return base.__getattribute__(self, name)

    def getattr_(self: Any, name: str) -> Any:
        # Parameters, buffers and submodules aren't ordinary attributes.
        host.sync()
        return base.__getattr__(self, name)

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        with as_original_class(self):
            return copy.deepcopy(self, memo)

    def reduce_ex(self: Any, protocol: SupportsIndex) -> Any:
        # From protocol 2 on, pickle requires that the object's class is the one it is rebuilt with.
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
    """A copy of the original class that shares submodules and tensors, but not plain attributes."""
    original: Any = original_class(model)
    duplicate: torch.nn.Module = original.__new__(original)
    duplicate.__dict__.update(model.__dict__)
    return duplicate


def check_buffers(model: torch.nn.Module) -> None:
    """Raises poptorch.Error for a buffer of a tensor subclass."""
    for buffer in model.buffers():
        if original_class(buffer) is not torch.Tensor:
            raise createPoptorchError(f"All buffers must be an instance of torch.Tensor (Got {type(buffer)})")


def check_not_wrapped(model: torch.nn.Module) -> None:
    """Raises RuntimeError if the model is wrapped already."""
    if is_wrapped(model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model "
            "to unwrap before wrapping again."
        )


def wrap(model: torch.nn.Module, host: HostWeights) -> None:
    """Wraps `model` in place. Raises RuntimeError if it is wrapped already."""
    check_not_wrapped(model)
    for kind, members in ((PoptorchParameter, model.parameters()), (PoptorchBuffer, model.buffers())):
        for tensor in members:
            _set_hosts(tensor, kind, [*_hosts(tensor), host])
    _set_class(model, _model_class(type(model), host))


def unwrap(model: torch.nn.Module) -> None:
    """Restores the original classes of `model` and its tensors; no-op if it isn't wrapped."""
    host = host_of(model)
    if host is None:
        return
    host.sync()
    for kind, members in ((PoptorchParameter, model.parameters()), (PoptorchBuffer, model.buffers())):
        for tensor in members:
            _set_hosts(tensor, kind, [other for other in _hosts(tensor) if other is not host])
    _set_class(model, original_class(model))


_outputs = WeakTensorKeyDictionary()


def mark(tensor: torch.Tensor) -> None:
    """Marks a model's output: backward() on it raises poptorch.Error."""
    _outputs[tensor] = True


def check_backward(tensor: torch.Tensor) -> None:
    """Raises poptorch.Error for a model's output."""
    if tensor in _outputs:
        raise createPoptorchError(
            "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a "
            "trainingModel, the backwards pass is performed automatically when invoking the model. If you're "
            "using an inferenceModel, you should use a trainingModel instead."
        )


class Executor(Protocol):
    """An executor whose model may have been created in torch.inference_mode."""

    is_of_inference_mode: bool


E = TypeVar("E", bound=Executor)
P = ParamSpec("P")
R = TypeVar("R")


def outside_inference_mode(
    method: Callable[Concatenate[E, P], R],
) -> Callable[Concatenate[E, P], R]:
    """Decorator: runs an executor's method outside the program's torch.inference_mode.

    In inference mode PyTorch records no gradients and creates inference tensors, which autograd can't use
    later: the device's weights must not be such. The mode stays on for a model of inference tensors.
    """

    @functools.wraps(method)
    def outside(executor: E, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled() or executor.is_of_inference_mode:
            return method(executor, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return method(executor, *args, **kwargs)

    return outside


def is_of_inference_mode(model: torch.nn.Module) -> bool:
    """Whether a model was created in torch.inference_mode and therefore can't be trained."""
    tensors = [*model.parameters(), *model.buffers()]
    return any(not torch.nn.parameter.is_lazy(tensor) and tensor.is_inference() for tensor in tensors)
