"""The loader of a training's batches: its processes on Ctrl-C, and the shared memory that they need."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterator, Optional, Type

from torch.utils.data import Sampler

import data
import ipu
from config import Config

from .errors import TrainingError
from .signals import ignore_interrupts

# Each worker of PyTorch's loader keeps two batches ready; PopTorch's accessor has three in its ring buffer.
_PREFETCHED, _RING = 2, 3
_LOOK_EVERY_S = 1.0  # for the run that a worker belongs to
_SHARED_MEMORY = Path("/dev/shm")


def training_batches(
    config: Config,
    options: Any,
    examples: data.SampleDataset,
    *,
    start_sample: int,
    calls: int,
    device: ipu.DeviceChoice,
    instances: ipu.Instances,
) -> Any:
    """A `poptorch.DataLoader` of this instance's share of `calls` device calls, from `start_sample` on.

    Raises TrainingError if the host has too little shared memory for the loader's processes.
    """
    samples = config.samples_per_call // instances.count
    workers, asynchronous = config.dataloader_workers, config.async_dataloader
    # Of any sample: all have the same shapes.
    sample_bytes = sum(field.numel() * field.element_size() for field in examples[0]) if workers else 0
    check_shared_memory(
        samples * sample_bytes,
        workers=workers,
        calls=calls,
        ring=_RING if asynchronous and device.name != "simulator" else 0,
        instances=instances.on_this_host,
    )
    sampler: Sampler[int] = data.SampleStream(
        start_sample,
        samples,
        calls,
        slice_size=config.micro_batch_size * options.replication_factor,
        rank=instances.index,
        world_size=instances.count,
    )
    # On IPUs an asynchronous loader is a process that PopTorch starts; on the simulator it is a thread.
    in_accessor = asynchronous and device.name != "simulator"
    modes = ipu.poptorch.DataLoaderMode
    return ipu.poptorch.DataLoader(
        options,
        examples,
        batch_size=config.micro_batch_size,
        sampler=_OfAccessor(sampler) if in_accessor else sampler,
        num_workers=workers,
        mode=modes.Async if asynchronous else modes.Sync,
        collate_fn=data.collate,
        worker_init_fn=end_with_accessor if in_accessor else end_with_run,
        auto_distributed_partitioning=False,
    )


def end_with_run(worker: int) -> None:
    """For DataLoader workers: they leave Ctrl-C and the first SIGTERM to the run, and end at latest a second
    after it, even if it was killed while they started."""
    ignore_interrupts(worker)
    sys.excepthook = after_its_run(sys.excepthook)
    threading.Thread(target=_follow_parent, daemon=True).start()


Hook = Callable[[Type[BaseException], BaseException, Optional[TracebackType]], Any]


def after_its_run(hook: Hook) -> Hook:
    """An excepthook of a worker, which a killed run leaves with half a message: multiprocessing's thread that
    hands out tensors would write a traceback. By the time that it may, the worker has followed its run."""

    def said(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        if issubclass(kind, (ConnectionError, EOFError)):
            time.sleep(30 * _LOOK_EVERY_S)
        hook(kind, error, trace)

    return said


def end_with_accessor(_worker: int) -> None:
    """For the DataLoader workers of PopTorch's accessor, a process that ends them with a single SIGTERM.

    They ignore Ctrl-C, which a terminal sends to them too, and end at latest a second after the accessor.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Ends this process after the one that started it, which isn't its parent in the eyes of the kernel if a
    fork server was asked to start it."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None, "DataLoader workers are processes"
    # Forked workers hold the pipe that tells of their parent's end open for each other: look at both.
    is_child = multiprocessing.get_start_method() != "forkserver"
    with contextlib.suppress(ProcessLookupError):
        while parent.is_alive() and (not is_child or os.getppid() == parent.pid):
            os.kill(parent.pid, 0)
            time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGKILL)


class _OfAccessor(Sampler[int]):
    """The samples of another sampler. The process that draws them, PopTorch's accessor, ends on Ctrl-C, but
    without a traceback: the run ends then too, and PopTorch sends this signal to an accessor that hangs.
    """

    def __init__(self, sampler: Sampler[int]) -> None:
        self._sampler, self._home = sampler, os.getpid()

    def __iter__(self) -> Iterator[int]:
        if os.getpid() != self._home:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]


def check_shared_memory(batch_bytes: int, *, workers: int, calls: int, ring: int, instances: int) -> None:
    """Raises TrainingError unless the batches that the loaders of all instances keep fit into /dev/shm."""
    if not workers or not _SHARED_MEMORY.is_dir():
        return
    batches = min(_PREFETCHED * workers, calls) + ring
    needed = instances * batches * batch_bytes
    system = os.statvfs(str(_SHARED_MEMORY))
    free = system.f_bavail * system.f_frsize
    if needed <= free:
        return
    fits = max(0, (free // (instances * batch_bytes) - ring) // _PREFETCHED)
    each = f" in each of {instances} instances" if instances > 1 else ""
    raise TrainingError(
        f"{workers} DataLoader workers keep up to {batches} batches of {batch_bytes / 1e6:,.1f} MB{each} in "
        f"shared memory, {needed / 1e9:.1f} GB, but {_SHARED_MEMORY} has {free / 1e9:.1f} GB free: use "
        f"--dataloader-workers {fits}, or enlarge it (mount -o remount,size={needed / 1e9 * 1.1:.0f}G "
        f"{_SHARED_MEMORY}; in a container, docker run --shm-size)"
    )
