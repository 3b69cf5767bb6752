"""Errors that a user can correct, and those of PyTorch that have no type."""

from __future__ import annotations

import errno
import re
import traceback
from typing import Optional

# The text of its CPU allocator (c10/core/impl/alloc_cpu.cpp), which ends with an errno.
_ALLOCATOR = re.compile(
    r"DefaultCPUAllocator: .*tried to allocate (?P<bytes>\d+) bytes\. Error code (?P<errno>\d+)"
)
# Where PyTorch raises the death of a worker; errors of a worker are raised again in torch._utils.
_WATCHES_WORKERS = ("torch.utils.data.dataloader", "torch.utils.data._utils.signal_handling")


class TrainingError(ValueError):
    """The run's inputs or its output folder are unusable; the message says what to do."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, incomplete, corrupt or belongs to another run or model."""


class DivergenceError(TrainingError):
    """The loss or a weight is NaN or infinite."""


def out_of_memory_bytes(error: RuntimeError) -> Optional[int]:
    """The bytes that the CPU allocator asked for and the host refused (ENOMEM); None for other errors."""
    found = _ALLOCATOR.search(str(error))
    if found is None or int(found["errno"]) != errno.ENOMEM:
        return None
    return int(found["bytes"])


def message_from_worker(error: ValueError) -> str:
    """The text of an error of ours: PyTorch puts the traceback of a DataLoader's worker around it."""
    text = str(error)
    marker = f"\n{type(error).__module__}.{type(error).__qualname__}: "
    if "Original Traceback" not in text or marker not in text:
        return text
    return text.rsplit(marker, 1)[1].rstrip()


def is_worker_death(error: RuntimeError) -> bool:
    """Whether PyTorch says with this error that a DataLoader's worker process has died."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__") in _WATCHES_WORKERS
