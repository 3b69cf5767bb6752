"""Thread-local state of a model that runs "on the IPU": its blocks, marked losses, open attributes.

`tracing()` is the context of the run that compiles a model, `running()` of every later run. In both,
isRunningOnIpu() is True; only the first records blocks.
"""

from __future__ import annotations

import operator
import threading
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping

import torch
from ipu_simulator.graph.recorder import Place, Recorder
from ipu_simulator.op_table import row_of
from torch.utils._pytree import tree_flatten

from ..poptorch_core import MAX_IPUS_PER_PROCESS, createBackendError, usesIpuModel
from . import Call, patches
from .multi_conv import MultiConvolution
from .overlap import Overlaps

if TYPE_CHECKING:
    from ..options import Options
    from .bodies import Loop


def computes(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation has tensor arguments and does more than alias one."""
    return (
        any(isinstance(arg, torch.Tensor) for arg in tree_flatten(args)[0])
        and not row_of(func.overloadpacket.__name__).alias
    )


class Run:
    """State of one forward on the device."""

    def __init__(self) -> None:
        self.identity_losses: list[torch.Tensor] = []
        self.inference_only: list[str] = []  # operations that can't be trained
        # Called with (new tensors, their sources) for tensors created outside the modes' view.
        self.mark_on_device: Callable[[list[torch.Tensor], list[torch.Tensor]], None] = lambda made, of: None
        self.recorder: Recorder | None = None  # where operations are recorded
        self.is_capture = False  # whether only its graph is wanted, forward and backward
        # Between two registered operators (ops_registered.py):
        self.branches: list[list[torch.Tensor]] = []  # results of the "then" of each open if
        self.loops: list[Loop] = []  # the open ones
        self.has_loops = False
        self.host_code: tuple[ExitStack, list[torch.Tensor]] | None = None  # its contexts and inputs
        self.open_ends = ExitStack()  # ends with the run

    def begin_block(self, user_id: str | None, ipu_id: int | None) -> None:
        """No-op: only the compiling run records blocks."""

    def enter(self, strategy_stage: int, ipu: int) -> None:
        """See begin_block."""

    def end_block(self) -> None:
        """See begin_block."""

    def reset_auto_id(self) -> None:
        """See begin_block."""


class Trace(Run):
    """State of the compiling run.

    The forward pipeline's stages follow from the IPUs of the blocks entered so far: it begins with stage 0 on
    IPU 0, and each change of the IPU begins the next one. So consecutive blocks on one IPU are one stage.
    """

    def __init__(self, options: Options, inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self._options = options
        self._strategy = options._execution_strategy
        self._next_auto_id = 0
        self.in_block = False  # whether a block is active
        self._strategy_stage = 0  # of the latest block
        self.stage_ipus: tuple[int, ...] = (0,)  # the IPU of each stage so far
        self._has_blocks = False
        self._in_forward = True
        # Whether the call in progress takes a device tensor.
        self.on_device: Callable[[], bool] = lambda: True
        self.multi_convolution: MultiConvolution | None = None  # the open poptorch.MultiConv's
        self.overlaps = Overlaps(options, inputs)
        self.follows_values = False
        # Called with a function and its arguments, which only later runs call at this point.
        self.at_each_run: Callable[..., None] = lambda func, *args: None

    def begin_block(self, user_id: str | None, ipu_id: int | None) -> None:
        if user_id is None:
            user_id = str(self._next_auto_id)
            self._next_auto_id += 1
        self.enter(*self._strategy._place(user_id, ipu_id))

    def enter(self, strategy_stage: int, ipu: int) -> None:
        """Begins a block at this place. Raises poptorch.Error if there is no such IPU."""
        # Other libraries have integers of other types.
        if not hasattr(ipu, "__index__") or operator.index(ipu) < 0:
            raise createBackendError(f"A block's ipu_id must be a whole number from 0 on, not {ipu!r}")
        ipu = operator.index(ipu)
        self.in_block = self._has_blocks = True
        self._strategy_stage = strategy_stage
        if ipu != self.stage_ipus[-1]:
            self.stage_ipus += (ipu,)

    def end_block(self) -> None:
        self.in_block = False

    def reset_auto_id(self) -> None:
        self._next_auto_id = 0

    def place(self) -> Place:
        """Where operations run now."""
        stage = len(self.stage_ipus) - 1
        return Place(stage, self.stage_ipus[-1], open_attributes(), self._strategy_stage)

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for operations (watch.py): refuses those after a `with Block`, and follows the
        convolutions of a MultiConv.

        PopTorch starts with stage 0 on IPU 0 active: operations before the first block belong there.
        """
        # Constants are placed at their first use, so only operations with tensor arguments count; what the
        # host computes from tensors alone is a constant too.
        outside = self._in_forward and self._has_blocks and not self.in_block
        if outside and self.on_device() and computes(func, args):
            raise createBackendError("No active Block, all the ops must belong to a Block")
        multi = self.multi_convolution
        follow = multi.before(func, args, kwargs) if multi is not None else False
        result = proceed(func, args, kwargs)
        if follow and multi is not None:
            multi.after(result)
        return result

    @property
    def runs_python(self) -> bool:
        """Whether each run must call the forward: it has a for_loop or cond, or a library read values."""
        return bool(self.inference_only) or self.follows_values

    @property
    def ipus_per_replica(self) -> int:
        """1 + the highest IPU in use."""
        return 1 + max(self.stage_ipus)

    def validate(self, training: bool) -> None:
        """At the forward's end: raises poptorch.Error if pipeline depth or the number of IPUs are invalid."""
        self._in_forward = False
        if training and self.inference_only:
            raise createBackendError(f"{self.inference_only[0]} is only supported in inference")
        self._check_num_ipus()
        self._strategy._check_depth(
            len(self.stage_ipus),
            training=training,
            gradient_accumulation=self._options.Training.gradient_accumulation,
            device_iterations=self._options.device_iterations,
        )

    @property
    def num_ipus(self) -> int:
        """Those of all replicas in this process, before they are rounded up to a power of 2."""
        return self.ipus_per_replica * self._options.replication_factor

    def _check_num_ipus(self) -> None:
        num_ipus = self.num_ipus
        reserved = 1 << (num_ipus - 1).bit_length()
        on_hardware = not usesIpuModel(self._options._values)
        if num_ipus > MAX_IPUS_PER_PROCESS:
            raise createBackendError(
                f"Too many IPUs requested ({num_ipus}). Experiments that need more than 64 IPUs require "
                "distributed execution."
            )
        if on_hardware and reserved != num_ipus and not self._options.auto_round_num_ipus:
            raise createBackendError(
                f"The model specifies the use of {num_ipus} IPUs, however PopTorch must reserve a minimum of "
                f"{reserved} in order to allow the model to run, because PopTorch must reserve a power of 2 "
                "or maximum of 64 IPUs per process. Please reconfigure your model to use a different number "
                "of IPUs or set poptorch.Options().autoRoundNumIPUs(True)."
            )


class _Thread(threading.local):
    """State of one thread, hidden from others (data loading, another model)."""

    run: Run | None = None
    on_host = False
    attributes: Mapping[str, dict[str, str]] = MappingProxyType({})  # of open poptorch.Attribute contexts


_thread = _Thread()


def current() -> Run | None:
    """The run that this thread executes; None on the host, also in host code in the middle of a run."""
    return None if _thread.on_host else _thread.run


def surrounding() -> Run | None:
    """As `current`, but also in host code in the middle of a run."""
    return _thread.run


def recorder() -> Recorder | None:
    """The one that this thread's operations are recorded by, if any."""
    return None if _thread.run is None else _thread.run.recorder


def isRunningOnIpu() -> bool:
    """Whether the caller runs as part of a model on the IPU; False in plain calls of the same module, and in
    other threads.
    """
    return current() is not None


def open_attributes() -> Mapping[str, dict[str, str]]:
    """The attributes of this thread's open poptorch.Attribute contexts."""
    return _thread.attributes


def set_attributes(attributes: Mapping[str, dict[str, str]]) -> None:
    """Replaces this thread's open attributes."""
    _thread.attributes = attributes


@contextmanager
def _as_current(run: Run | None, on_host: bool = False) -> Iterator[None]:
    outer = _thread.run, _thread.on_host, _thread.attributes
    _thread.run, _thread.on_host = run, on_host
    try:
        yield
    finally:
        if run is not None and not on_host:
            run.open_ends.close()
        _thread.run, _thread.on_host, _thread.attributes = outer


def as_host() -> AbstractContextManager[None]:
    """Context of host code in the middle of a run."""
    return _as_current(_thread.run, on_host=True)


@contextmanager
def tracing(
    options: Options, inputs: list[torch.Tensor], on_function: Callable[[], None] | None = None
) -> Iterator[Trace]:
    """Context of the forward that compiles a model; call `Trace.validate` and `overlaps.check` afterwards.

    :param inputs: the forward's tensors.
    :param on_function: called when an autograd.Function with a gradient is applied.
    """
    trace = Trace(options, inputs)
    strategy = options._execution_strategy
    strategy.onStartTracing()
    try:
        with _as_current(trace), patches.around_forward(True, on_function):
            yield trace
    finally:
        strategy.onEndTracing()


@contextmanager
def running(casts: bool = False) -> Iterator[Run]:
    """Context of every later forward; `casts`: whether implicit casts apply."""
    run = Run()
    with _as_current(run), patches.around_forward(casts):
        yield run
