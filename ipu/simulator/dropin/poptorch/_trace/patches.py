"""Every change that the drop-in makes to torch itself, in one place: what, why, and for how long.

From `import poptorch` on, because PopTorch does so itself:

- `nn.Parameter.replicaGrouping`: a parameter says which replicas share it.
- `nn.Parameter.__new__`: a training model's wrapped weight may become a new Parameter.
- `Tensor.backward`: refused on a model's outputs.

While a model's forward runs, undone after:

- `Tensor.__new__`: a forward can make tensor subclasses under a dispatch mode.
- `autograd.Function.apply`, in a compilation only: the function's backward isn't among the calls on the tape.
- `nn.RNNBase.check_input`, with implicit casts only: recurrent layers check types before any call is seen.
- `backends.mkldnn.enabled`: off where oneDNN's kernels are wrong, or would hide what they compute.
- attention's kernels (torch's `sdpa_kernel`), in a capture only: the same.

These last five are torch's for the whole process. Whichever thread leaves last restores what the first one
found, and the functions among them behave as torch's own in every thread that isn't inside. torch's module
hooks, which name the operations of a forward, are in ipu_simulator/graph/recorder.py; they too are removed
after the forward.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import Any, Callable, Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes

# ---- from `import poptorch` on

_parameter_new = torch.nn.Parameter.__new__
_backward = torch.Tensor.backward


def install(
    is_wrapped: Callable[[Any], bool],
    check_backward: Callable[[torch.Tensor], None],
    replica_grouping: Callable[..., None],
) -> None:
    """Changes torch for the process, as PopTorch does.

    :param is_wrapped: whether a tensor is one of a training model's wrapped weights.
    :param check_backward: raises where backward() can't be called on a tensor.
    :param replica_grouping: the method `replicaGrouping` of parameters.
    """

    def parameter_new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        # PyTorch takes tensors of other classes only where detach() keeps the class.
        plain = data.detach() if data is not None and is_wrapped(data) else data
        return _parameter_new(cls, plain, requires_grad)

    @functools.wraps(_backward)
    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        check_backward(self)
        _backward(self, *args, **kwargs)

    torch.nn.Parameter.replicaGrouping = replica_grouping  # type: ignore[attr-defined]
    torch.nn.Parameter.__new__ = staticmethod(parameter_new)  # type: ignore[assignment]
    torch.Tensor.backward = backward  # type: ignore[method-assign]


# ---- around a forward

_ABSENT = object()
_lock = threading.Lock()


class _Patch:
    """Replaces an attribute while any thread is inside `with patch(value)`.

    The replacement asks `here` for the value that its own thread entered with.
    """

    def __init__(self, owner: Any, name: str, replacement: Any) -> None:
        self._owner = owner
        self._name = name
        self._replacement = replacement
        self._threads = 0
        self._local = threading.local()
        self.original: Any = None  # what was replaced, as in the owner's __dict__

    @property
    def here(self) -> Any:
        """The value, or None where this thread isn't inside."""
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


_tensor_new = torch.Tensor.__new__


def _new(cls: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Under a dispatch mode PyTorch can't make a subclass: Python has seen the tensor that it would turn into
    one already.
    """
    if cls is torch.Tensor or not _subclasses.here:
        return _tensor_new(cls, *args, **kwargs)
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        return args[0].as_subclass(cls)  # the same as an operation, which is seen
    with _disable_current_modes():  # of numbers or sizes: the host's
        return _tensor_new(cls, *args, **kwargs)


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    told = _functions.here
    if told is not None and torch.is_grad_enabled():
        told()
    return _functions.original.__get__(None, cls)(*args, **kwargs)


def _check_input(layer: torch.nn.RNNBase, input: torch.Tensor, batch_sizes: Any) -> None:
    """What a recurrent layer checks of its input, but for the type."""
    if _recurrent.here:
        input = input.to(layer._flat_weights[0].dtype)  # type: ignore[union-attr]
    _recurrent.original(layer, input, batch_sizes)


_subclasses = _Patch(torch.Tensor, "__new__", staticmethod(_new))
_functions = _Patch(torch.autograd.Function, "apply", classmethod(_apply))
_recurrent = _Patch(torch.nn.RNNBase, "check_input", _check_input)


@contextlib.contextmanager
def around_forward(casts: bool, on_function: Callable[[], None] | None = None) -> Iterator[None]:
    """The changes around one forward, in the order in which they are made.

    :param casts: whether implicit casts are made, so that recurrent layers take any float.
    :param on_function: called where an autograd.Function with a gradient is applied.
    """
    if "torch._compile" in sys.modules:
        # PyTorch imports this with the first operation that a mode sees, and looks at the constructor then.
        import torch._dynamo as _dynamo  # noqa: F401
    with contextlib.ExitStack() as stack:
        stack.enter_context(_subclasses())
        if on_function is not None:
            stack.enter_context(_functions(on_function))
        if casts:
            stack.enter_context(_recurrent())
        yield


# ---- which kernels compute

# Before this version, oneDNN's gradients of one-dimensional convolutions can be garbage: seen with 2.0.1 in
# plain PyTorch, where 2.13, and 2.0.1 without oneDNN, give what float64 does.
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
    """Inside, nothing computes by a kernel that is known to be wrong in this version of PyTorch."""
    major, minor = torch.__version__.split(".")[:2]
    wrong = (int(major), int(minor)) < _WRONG_ONEDNN
    with _no_onednn() if wrong else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Inside, tensors are made on the CPU unless a program says otherwise, and nothing runs as a kernel that
    only CPUs have: such would hide what it is composed of. Needs torch 2.3.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    on_cpu = torch.get_default_device().type == "cpu"
    with (
        _no_onednn(),
        sdpa_kernel(SDPBackend.MATH),
        contextlib.nullcontext() if on_cpu else torch.device("cpu"),
    ):
        yield
