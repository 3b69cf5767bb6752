"""What is known while a model runs "on the IPU": the blocks it enters and the losses it marks.

`tracing(options)` stands around the one run that compiles a model, `running()` around every later run. In
both, isRunningOnIpu() is True; only the first records blocks.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping

import torch
from ipu_simulator.environment import TARGET_VARIABLE, target
from torch.utils._pytree import tree_flatten

from .. import enums
from ..poptorch_core import MAX_IPUS_PER_PROCESS, createBackendError, usesIpuModel
from . import patches
from .watch import Call

if TYPE_CHECKING:
    from ipu_simulator.graph.recorder import Recorder

    from ..options import Options
    from . import popart_ir

# These make another name for a tensor and leave nothing to run.
NOT_COMPUTING = frozenset(
    {torch.ops.aten.alias.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default}
)


@dataclass(frozen=True)
class BlockEntry:
    """One entering of a block; blocks may be entered several times."""

    block_id: str
    stage: int
    ipu: int


class Run:
    """A model's forward on the device."""

    def __init__(self) -> None:
        self.identity_losses: list[torch.Tensor] = []
        self.inference_only: list[str] = []  # operations that can't be trained
        # Of tensors that no operation seen made: they, and what they were made of.
        self.mark_on_device: Callable[[list[torch.Tensor], list[torch.Tensor]], None] = lambda made, of: None
        self.recorder: Recorder | None = None  # where the graph is captured
        self.ir_recorder: popart_ir.Recorder | None = None  # where operations are named

    def begin_block(self, user_id: str | None, ipu_id: int | None) -> None:
        """Blocks only matter to the run that compiles."""

    def end_block(self) -> None:
        """See begin_block."""

    def reset_auto_id(self) -> None:
        """See begin_block."""


class Trace(Run):
    """The compiling run: `entries` lists the blocks in the order in which they were entered."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options
        self._strategy = options._execution_strategy
        self._next_auto_id = 0
        self._active: BlockEntry | None = None
        self.entries: list[BlockEntry] = []
        self.computes_outside_block = False
        self.convolutions: int | None = None  # so far in the poptorch.MultiConv that is open, if any
        self.follows_values = False
        # Takes a function and arguments for it: what later runs do at this point, and a compilation doesn't.
        self.at_each_run: Callable[..., None] = lambda func, *args: None

    def begin_block(self, user_id: str | None, ipu_id: int | None) -> None:
        if user_id is None:
            user_id = str(self._next_auto_id)
            self._next_auto_id += 1
        stage, ipu = self._strategy._place(user_id, ipu_id)
        self._active = BlockEntry(user_id, stage, ipu)
        self.entries.append(self._active)

    def end_block(self) -> None:
        self._active = None

    def reset_auto_id(self) -> None:
        self._next_auto_id = 0

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listens to operations (watch.py): whether the model computes anything after leaving a `with Block`;
        how many convolutions a MultiConv holds.

        PopTorch begins with stage 0 on IPU 0 active: what comes before the first block stands there.
        """
        if self.convolutions is not None:
            self.convolutions += func is torch.ops.aten.convolution.default
        # A constant is made where it is first used, so only what takes a tensor counts.
        if (
            self.entries
            and not self.in_block
            and func not in NOT_COMPUTING
            and any(isinstance(arg, torch.Tensor) for arg in tree_flatten(args)[0])
        ):
            self.computes_outside_block = True
        return proceed(func, args, kwargs)

    @property
    def runs_python(self) -> bool:
        """Whether each run needs the forward's Python: where a graph would have a loop or a branch, or where
        something looked at values.
        """
        return bool(self.inference_only) or self.follows_values

    @property
    def in_block(self) -> bool:
        """Whether a block is in force."""
        return self._active is not None

    @property
    def active_ipu(self) -> int:
        """The IPU of the block in force; 0 where there's none."""
        return self._active.ipu if self._active else 0

    @property
    def num_pipeline_stages(self) -> int:
        """The depth of the forward pipeline: one more than the IPU changes along the blocks, from IPU 0
        on.
        """
        ipus = [0] + [entry.ipu for entry in self.entries]
        return 1 + sum(before != after for before, after in pairwise(ipus))

    @property
    def ipus_per_replica(self) -> int:
        """The highest IPU in use and all below it."""
        return 1 + max((entry.ipu for entry in self.entries), default=0)

    def validate(self, training: bool) -> None:
        """Raises poptorch.Error where blocks, pipeline depth or number of IPUs can't be compiled."""
        if self.computes_outside_block:
            raise createBackendError("No active Block, all the ops must belong to a Block")
        if training and self.inference_only:
            raise createBackendError(f"{self.inference_only[0]} is only supported in inference")
        self._strategy._check_depth(self._options, self.num_pipeline_stages, training)
        self._check_num_ipus()

    def _check_num_ipus(self) -> None:
        num_ipus = self.ipus_per_replica * self._options.replication_factor
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
        offline = self._options.connection_type == enums.ConnectionType.Never.value
        machine = target()
        if on_hardware and not offline and reserved > machine.num_ipus:
            raise createBackendError(
                f"Failed to acquire {reserved} IPU(s)\n"
                f"No device found on the system with {reserved} IPUs: the configuration needs changing "
                f"({machine.name} has {machine.num_ipus}; {TARGET_VARIABLE} names the simulator's machine)"
            )


class _Thread(threading.local):
    """What this thread is in the middle of; other threads (data loading, another model) see nothing of it."""

    run: Run | None = None
    on_host = False
    attributes: Mapping[str, dict[str, str]] = MappingProxyType({})  # of the poptorch.Attribute that are open


_thread = _Thread()


def current() -> Run | None:
    """The run that this thread is part of, or None on the host, which includes the host's part of a run."""
    return None if _thread.on_host else _thread.run


def surrounding() -> Run | None:
    """As `current`, but also in the host's part of a run."""
    return _thread.run


def isRunningOnIpu() -> bool:
    """Whether the caller runs as part of a model on the IPU; False in a plain call of the same module, and in
    every other thread.
    """
    return current() is not None


def open_attributes() -> Mapping[str, dict[str, str]]:
    """Those of the poptorch.Attribute contexts that are open in this thread."""
    return _thread.attributes


def set_attributes(attributes: Mapping[str, dict[str, str]]) -> None:
    """See open_attributes."""
    _thread.attributes = attributes


@contextmanager
def _as_current(run: Run | None, on_host: bool = False) -> Iterator[None]:
    outer = _thread.run, _thread.on_host
    _thread.run, _thread.on_host = run, on_host
    try:
        yield
    finally:
        _thread.run, _thread.on_host = outer


def as_host() -> AbstractContextManager[None]:
    """Stands around what the host does in the middle of a run."""
    return _as_current(_thread.run, on_host=True)


@contextmanager
def tracing(options: Options, on_function: Callable[[], None] | None = None) -> Iterator[Trace]:
    """Stands around the forward that compiles a model; `Trace.validate` afterwards says whether it can be.

    :param on_function: called where an autograd.Function with a gradient is applied.
    """
    trace = Trace(options)
    strategy = options._execution_strategy
    strategy.onStartTracing()
    try:
        with _as_current(trace), patches.around_forward(True, on_function):
            yield trace
    finally:
        strategy.onEndTracing()


@contextmanager
def running(casts: bool = False) -> Iterator[Run]:
    """Stands around every later forward; `casts`: whether it makes implicit casts."""
    run = Run()
    with _as_current(run), patches.around_forward(casts):
        yield run
