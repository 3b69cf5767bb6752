"""The function mode and the dispatch mode that watch a forward, each with an ordered list of listeners.

The function mode (TorchFunctionMode) sees calls to torch as the program makes them; the dispatch mode
(TorchDispatchMode) sees the aten operations below autograd that they consist of. Each passes every call
through its listeners in order. A listener may inspect, change or answer a call, and inspect its result. Calls
made through `proceed` reach the later listeners; direct calls reach none. The order is therefore part of the
semantics, and is defined only here.

Compilation, calls:
1. errors: the operation that an error comes from
2. tape: records the call as the program made it, and its final result; bodies: loops between two registered
   operators do the same
3. statistics: whether the forward reads running statistics after their norm
4. buffers: notices norms, which may change their statistics
5. casts: implicit casts of mixed float16 and float32 operands
6. checks: tracks the device's tensors; refuses what a graph can't hold; device "ipu"; narrow indices
7. losses: results of loss functions
8. values: computes the shape alone if a value prevents the result

Compilation, operations:
1. checks: refuses operations that PopTorch lacks, and reads of values
2. buffers: refuses changes of buffers that replicas share
3. tape, bodies: notice operations that belong to no recorded call
4. recorder: what _debugGetPopartIR and getTensorNames export
5. blocks: the block of each operation
6. values: as for calls

During compilation, an operation that belongs to no call (TorchScript's, a C++ extension's) is treated as a
call first.

Capture for the cost model, calls: errors, bodies, casts, the weights' stand-ins, checks, losses. Operations:
checks, and also of the backward pass recorder, blocks.

Later runs, calls: errors (of a forward, not of a replay), and listeners that the compilation found necessary:
bodies, running statistics, moved constants, device "ipu", narrow indices, casts, losses, strided group norm,
products in bfloat16.
Operations: recorder, for results that options.anchorTensor names.

The arithmetic (ipu_simulator/numerics) is another dispatch mode, outside this one: it computes the operations
after all listeners have seen them. SavedTensors is one inside.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

import torch
from ipu_simulator import numerics
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from . import Call, Listener, bodies, errors
from .values import Valueless

if TYPE_CHECKING:
    from ipu_simulator.graph.recorder import Recorder

    from .buffers import SharedBuffers
    from .casts import ImplicitCasts
    from .checks import Checks
    from .constants import Moves
    from .losses import Losses
    from .run import Trace
    from .running_statistics import RunningStatistics
    from .tape import Tape


# PopTorch's registered operators, with the functions that they stand for. The listeners see the calls that
# such a function makes, as if the program had called it.
COMPOSED: dict[Any, Callable[..., Any]] = {}


def _perform(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _through(listeners: Sequence[Listener]) -> Call:
    proceed: Call = _perform
    for listener in reversed(listeners):
        proceed = functools.partial(listener, proceed)
    return proceed


_DEVICE = torch.ops.prim.device.default


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether PyTorch's own code for an operation, on every device, calls other operations."""
    composite: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return composite


class _FunctionMode(TorchFunctionMode):
    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__()
        self._proceed = _through(listeners)
        self.under_way = False  # whether a call is in progress

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in COMPOSED:
            with self:
                return COMPOSED[func](*args, **(kwargs or {}))
        self.under_way = True
        try:
            return self._proceed(func, args, kwargs or {})
        finally:
            self.under_way = False


class _DispatchMode(numerics.OperationMode):
    """With `calls`, an operation that belongs to no call is treated as a call first."""

    def __init__(self, listeners: Sequence[Listener], calls: _FunctionMode | None = None) -> None:
        super().__init__()
        self._proceed = _through(listeners)
        self._calls = calls
        self._asked = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in COMPOSED:  # outside of inference mode only those without tensors
            with self:
                return COMPOSED[func](*args, **(kwargs or {}))
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if torch.is_inference_mode_enabled() and _is_composite(func):
            # Without autograd, PyTorch dispatches these whole; PopTorch gets their parts here too.
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if self._calls is None or self._calls.under_way or self._asked:
            return self._proceed(func, args, kwargs or {})
        self._asked = True  # PyTorch may skip the function mode: then the operation comes back here
        try:
            with self:
                return func(*args, **(kwargs or {}))
        finally:
            self._asked = False


@contextlib.contextmanager
def watching(calls: Sequence[Listener] = (), operations: Sequence[Listener] = ()) -> Iterator[None]:
    """Context: this thread's calls and operations pass through these listeners. No mode without listeners.

    With both, an operation that belongs to no call is treated as a call first.
    """
    functions = _FunctionMode(calls) if calls else None
    with (
        _DispatchMode(operations, functions) if operations else contextlib.nullcontext(),
        functions or contextlib.nullcontext(),
    ):
        yield


def compilation(
    trace: Trace,
    tape: Tape,
    casts: ImplicitCasts,
    checks: Checks,
    losses: Losses,
    statistics: RunningStatistics,
    buffers: SharedBuffers,
    recorder: Recorder,
    before_writes: Listener,
) -> contextlib.AbstractContextManager[None]:
    """Context of the forward that compiles a model."""
    values = Valueless(lambda: checks.is_on_host)
    return watching(
        calls=(
            errors.on_call,
            tape.on_call,
            bodies.on_call,
            statistics.on_call,
            buffers.on_call,
            casts.on_call,
            checks.on_call,
            losses.on_call,
            values.on_call,
        ),
        operations=(
            checks.on_operation,
            buffers.on_operation,
            before_writes,
            tape.on_operation,
            bodies.on_operation,
            recorder.on_operation,
            trace.on_operation,
            values.on_call,
        ),
    )


@contextlib.contextmanager
def captured_calls(
    casts: ImplicitCasts, stand_ins: Listener, checks: Checks, losses: Losses
) -> Iterator[None]:
    """Context of the forward whose graph is captured, inside `captured_operations`."""
    with (
        watching(operations=(checks.on_operation,)),
        watching(
            calls=(errors.on_call, bodies.on_call, casts.on_call, stand_ins, checks.on_call, losses.on_call)
        ),
    ):
        yield


def captured_operations(trace: Trace, recorder: Recorder) -> contextlib.AbstractContextManager[None]:
    """Context of the forward and the backward pass whose graph is captured."""
    return watching(operations=(recorder.on_operation, trace.on_operation))


def later_run(
    errors_of_forward: bool,
    loops: Listener | None,
    statistics: RunningStatistics | None,
    moves: Moves | None,
    device: Listener | None,
    indices: Listener | None,
    casts: ImplicitCasts | None,
    losses: Losses | None,
    group_norm: Listener | None,
    products: Listener | None,
) -> contextlib.AbstractContextManager[None]:
    """Context of each forward after compilation; None for a listener that isn't needed."""
    calls = (
        errors.on_call if errors_of_forward else None,
        loops,
        None if statistics is None else statistics.on_call,
        None if moves is None else moves.on_call,
        device,
        indices,
        None if casts is None else casts.on_call,
        None if losses is None else losses.on_call,
        group_norm,
        products,
    )
    return watching(calls=tuple(call for call in calls if call is not None))


def anchored(recorder: Recorder) -> contextlib.AbstractContextManager[None]:
    """Context of a forward with anchored results of operations."""
    return watching(operations=(recorder.on_operation,))
