"""All monkeypatches of torch, in one place: what, why, and for how long.

Permanent from `import poptorch` on, as in PopTorch:

- `nn.Parameter.replicaGrouping`: sets which replicas share a parameter.
- `nn.Parameter.__new__`: accepts a training model's wrapped weight as data.
- `Tensor.backward`: raises on a model's outputs.

While a model's forward runs, undone afterwards:

- `Tensor.__new__`: lets a forward create tensor subclasses under a dispatch mode.
- `autograd.Function.apply`, during compilation only: the tape can't replay a custom backward pass.
- `nn.RNNBase.check_input`, with implicit casts only: recurrent layers check dtypes before the function mode
  sees a call.
- `backends.mkldnn.enabled`: off if oneDNN's kernels are wrong, or would hide the operations they fuse.
- attention's kernels (torch's `sdpa_kernel`), during a capture only: likewise.

The last five are global to the process. The last thread to leave restores the state that the first one found,
and the patched functions behave as torch's in every thread outside. torch's module hooks, which name a
forward's operations, are in ipu_simulator/graph/recorder.py; they too are removed after the forward.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import Any, Callable, ClassVar, Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes

# ---- permanent

_parameter_new = torch.nn.Parameter.__new__
_backward = torch.Tensor.backward


def install(
    is_wrapped: Callable[[Any], bool],
    check_backward: Callable[[torch.Tensor], None],
    replica_grouping: Callable[..., None],
) -> None:
    """Installs the permanent patches.

    :param is_wrapped: whether a tensor is a training model's wrapped weight.
    :param check_backward: raises if backward() is refused on a tensor.
    :param replica_grouping: the method `replicaGrouping` of parameters.
    """

    def parameter_new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        # PyTorch accepts a tensor subclass only if its detach() keeps the class.
        plain = data.detach() if data is not None and is_wrapped(data) else data
        return _parameter_new(cls, plain, requires_grad)

    @functools.wraps(_backward)
    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        check_backward(self)
        _backward(self, *args, **kwargs)

    torch.nn.Parameter.replicaGrouping = replica_grouping  # type: ignore[attr-defined]
    torch.nn.Parameter.__new__ = staticmethod(parameter_new)  # type: ignore[assignment]
    torch.Tensor.backward = backward  # type: ignore[method-assign]


# ---- during a forward

_ABSENT = object()
_lock = threading.Lock()


class _Patch:
    """Replaces an attribute while at least one thread is inside `with patch(value)`.

    The replacement reads this thread's value from `here`.
    """

    def __init__(self, owner: Any, name: str, replacement: Any) -> None:
        self._owner = owner
        self._name = name
        self._replacement = replacement
        self._threads = 0
        self._local = threading.local()
        self.original: Any = None  # the replaced attribute, as in the owner's __dict__

    @property
    def here(self) -> Any:
        """This thread's value; None outside."""
        return getattr(self._local, "value", None)

    @contextlib.contextmanager
    def __call__(self, value: Any = True) -> Iterator[None]:
        outer = self.here
        with _lock:
            if not self._threads:
                self.original = vars(self._owner).get(self._name, _ABSENT)
                setattr(self._owner, self._name, self._replacement)
            self._threads += 1
        self._local.value = value
        try:
            yield
        finally:
            self._local.value = outer
            with _lock:
                self._threads -= 1
                if not self._threads and self.original is _ABSENT:
                    delattr(self._owner, self._name)
                elif not self._threads:
                    setattr(self._owner, self._name, self.original)


_tensor_new: Callable[..., torch.Tensor] = torch.Tensor.__new__


def _new(*arguments: Any, **kwargs: Any) -> torch.Tensor:
    """Under a dispatch mode, PyTorch's constructor can't create a subclass: the new tensor already has a
    Python object of the plain class.

    If a forward is the first to import torch._dynamo, that inspects this function, and accepts no other
    signature.
    """
    cls, *args = arguments
    if cls is torch.Tensor or not _subclasses.here:
        return _tensor_new(cls, *args, **kwargs)
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        tensor: torch.Tensor = args[0].as_subclass(cls)
        return tensor  # an equivalent operation, which the modes see
    with _disable_current_modes():  # from numbers or sizes: a host tensor
        return _tensor_new(cls, *args, **kwargs)


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    told = _functions.here
    if told is not None and torch.is_grad_enabled():
        told()
    return _functions.original.__get__(None, cls)(*args, **kwargs)


def _check_input(layer: torch.nn.RNNBase, input: torch.Tensor, batch_sizes: Any) -> None:
    """RNNBase.check_input without its check of the dtype."""
    if _recurrent.here:
        input = input.to(layer._flat_weights[0].dtype)  # type: ignore[union-attr]
    _recurrent.original(layer, input, batch_sizes)


_subclasses = _Patch(torch.Tensor, "__new__", staticmethod(_new))
_functions = _Patch(torch.autograd.Function, "apply", classmethod(_apply))
_recurrent = _Patch(torch.nn.RNNBase, "check_input", _check_input)


class Substitutions:
    """Context of one forward, in which the context managers that third parties registered are entered.

    They replace functions of other libraries by ones for the device: poptorch_geometric those of PyTorch
    Geometric's packages in C++.
    """

    _managers: ClassVar[list[Callable[[], contextlib.AbstractContextManager[Any]]]] = []

    @classmethod
    def registerSubsitutionManager(
        cls, subsitution_manager_type: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> None:
        """Registers a class of context managers, or a function that makes them; once if called again."""
        if subsitution_manager_type not in cls._managers:
            cls._managers.append(subsitution_manager_type)

    # They change the whole process: threads whose forwards overlap share one entry.
    _lock: ClassVar[threading.RLock] = threading.RLock()
    _forwards: ClassVar[int] = 0
    _entered: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()

    def __enter__(self) -> None:
        kind = Substitutions
        with kind._lock:
            if not kind._forwards:
                with contextlib.ExitStack() as stack:
                    for make in kind._managers:
                        stack.enter_context(make())
                    kind._entered = stack.pop_all()
            kind._forwards += 1

    def __exit__(self, *error: object) -> None:
        kind = Substitutions
        with kind._lock:
            kind._forwards -= 1
            if not kind._forwards:
                kind._entered.close()


@contextlib.contextmanager
def around_forward(casts: bool, on_function: Callable[[], None] | None = None) -> Iterator[None]:
    """Context of one forward: the temporary patches, in this order.

    :param casts: whether implicit casts apply, so that recurrent layers accept any float dtype.
    :param on_function: called when an autograd.Function with a gradient is applied.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_subclasses())
        if on_function is not None:
            stack.enter_context(_functions(on_function))
        if casts:
            stack.enter_context(_recurrent())
        stack.enter_context(Substitutions())
        yield


# ---- kernels

# Before this version, oneDNN's gradients of 1-d convolutions can be garbage: seen with plain PyTorch 2.0.1.
# 2.13, and 2.0.1 without oneDNN, agree with float64.
_WRONG_ONEDNN = (2, 1)
_onednn: Any = torch.backends.mkldnn
_without_onednn = 0  # threads
_had_onednn = True


@contextlib.contextmanager
def _no_onednn() -> Iterator[None]:
    global _without_onednn, _had_onednn
    with _lock:
        if not _without_onednn:
            _had_onednn, _onednn.enabled = _onednn.enabled, False
        _without_onednn += 1
    try:
        yield
    finally:
        with _lock:
            _without_onednn -= 1
            if not _without_onednn:
                _onednn.enabled = _had_onednn


@contextlib.contextmanager
def trusted_kernels() -> Iterator[None]:
    """Context: disables kernels that are known to be wrong in this version of PyTorch."""
    major, minor = torch.__version__.split(".")[:2]
    wrong = (int(major), int(minor)) < _WRONG_ONEDNN
    with _no_onednn() if wrong else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Context: the default device is the CPU, and fused CPU kernels are off, which would hide the operations
    they consist of. Needs torch 2.3.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    on_cpu = torch.get_default_device().type == "cpu"
    with (
        _no_onednn(),
        sdpa_kernel(SDPBackend.MATH),
        contextlib.nullcontext() if on_cpu else torch.device("cpu"),
    ):
        yield
