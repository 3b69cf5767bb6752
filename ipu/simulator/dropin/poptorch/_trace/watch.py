"""How a forward is watched: THE function mode and THE dispatch mode, each with an ordered list of listeners.

The function mode sees the forward's calls to torch as the program makes them; the dispatch mode sees the
operations below autograd that these come down to. Both hand each call through their listeners in order. A
listener may look at it, change it, answer it, and look at its result; what it does through `proceed` the
listeners after it see as well, and what it calls directly nobody sees. So the order is the semantics, and it
stands here alone.

A compilation, calls:
1. tape: the call as the program made it, and its final result
2. casts: may make others of it (float16 operands that meet float32 ones become float32)
3. checks: which tensors are the device's; refuses what a graph can't hold; "ipu" as a device; narrow indices
4. losses: the results of loss functions

A compilation, operations:
1. checks: refuses operations that PopTorch has none of, and values read in passing
2. tape: operations that no call on it led to
3. names: the graph of _debugGetPopartIR
4. blocks: what stands in which block

In a compilation, an operation that no call led to (TorchScript's, a C++ extension's) is a call first.

A capture for the cost model, calls: casts, the weights' stand-ins, checks, losses. Operations, also those of
the backward pass: the graph, blocks.

A later run, where the compilation found a need: calls: "ipu" as a device, narrow indices, casts, losses.
Operations: results that options.anchorTensor names.

The arithmetic of ipu-float16 (ipu_simulator/numerics) is a dispatch mode around this one: it computes what
all listeners have seen.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from ipu_simulator.graph import recorder

    from . import popart_ir
    from .casts import ImplicitCasts
    from .checks import Checks
    from .losses import Losses
    from .run import Trace
    from .tape import Tape

# (func, args, kwargs) -> result.
Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
# The same, after `proceed`: the rest of the way.
Listener = Callable[[Call, Any, tuple[Any, ...], dict[str, Any]], Any]


def _perform(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _through(listeners: Sequence[Listener]) -> Call:
    proceed: Call = _perform
    for listener in reversed(listeners):
        proceed = functools.partial(listener, proceed)
    return proceed


class _FunctionMode(TorchFunctionMode):
    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__()
        self._proceed = _through(listeners)
        self.under_way = False  # whether a call is

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.under_way = True
        try:
            return self._proceed(func, args, kwargs or {})
        finally:
            self.under_way = False


class _DispatchMode(TorchDispatchMode):
    """With `calls`, an operation that no call led to is a call first."""

    def __init__(self, listeners: Sequence[Listener], calls: _FunctionMode | None = None) -> None:
        super().__init__()
        self._proceed = _through(listeners)
        self._calls = calls
        self._asked = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._calls is None or self._calls.under_way or self._asked:
            return self._proceed(func, args, kwargs or {})
        self._asked = True  # PyTorch may leave the function mode out: then it comes back here
        try:
            with self:
                return func(*args, **(kwargs or {}))
        finally:
            self._asked = False


@contextlib.contextmanager
def watching(calls: Sequence[Listener] = (), operations: Sequence[Listener] = ()) -> Iterator[None]:
    """Inside, this thread's calls and operations go through these listeners; without any, at no cost.

    With both, an operation that no call led to is a call first.
    """
    functions = _FunctionMode(calls) if calls else None
    with (
        _DispatchMode(operations, functions) if operations else contextlib.nullcontext(),
        functions or contextlib.nullcontext(),
    ):
        yield


def compilation(
    trace: Trace, tape: Tape, casts: ImplicitCasts, checks: Checks, losses: Losses, names: popart_ir.Recorder
) -> contextlib.AbstractContextManager[None]:
    """Stands around the forward that compiles a model."""
    return watching(
        calls=(tape.on_call, casts.on_call, checks.on_call, losses.on_call),
        operations=(checks.on_operation, tape.on_operation, names.on_operation, trace.on_operation),
    )


def captured_calls(
    casts: ImplicitCasts, stand_ins: Listener, checks: Checks, losses: Losses
) -> contextlib.AbstractContextManager[None]:
    """Stands around the forward whose graph is captured, inside `captured_operations`."""
    return watching(calls=(casts.on_call, stand_ins, checks.on_call, losses.on_call))


def captured_operations(trace: Trace, graph: recorder.Recorder) -> contextlib.AbstractContextManager[None]:
    """Stands around the forward and the backward pass whose graph is captured."""
    return watching(operations=(graph.on_operation, trace.on_operation))


def later_run(
    device: Listener | None, indices: Listener | None, casts: ImplicitCasts | None, losses: Losses | None
) -> contextlib.AbstractContextManager[None]:
    """Stands around each forward after the compilation; None for what that found no need of."""
    calls = (
        device,
        indices,
        None if casts is None else casts.on_call,
        None if losses is None else losses.on_call,
    )
    return watching(calls=tuple(call for call in calls if call is not None))


def anchored(names: popart_ir.Watcher) -> contextlib.AbstractContextManager[None]:
    """Stands around a forward of which operations' results are kept."""
    return watching(operations=(names.on_operation,))
