"""Finds the caller of an operation: the user's program, a library newer than PopTorch, or PopTorch.

PopTorch's rules apply to all code, wherever its file is. The simulator exempts only PyTorch and the libraries
listed here, whose current releases are newer than PopTorch.
"""

from __future__ import annotations

import enum
import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType
from typing import Iterator

import torch

# With a separator at the end: torchvision is another package.
_TORCH = str(Path(torch.__file__).parent) + os.sep
_POPTORCH = str(Path(__file__).parents[1]) + os.sep
_DROP_IN = str(Path(__file__).parents[2]) + os.sep
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
# PyTorch's wrappers of operations: skipped, their caller counts.
_WRAPPERS = tuple(
    str(Path(_TORCH) / name)
    for name in (
        "overrides.py",
        "_ops.py",  # torch.ops, and operations that belong to no call
        "_tensor.py",
        "functional.py",
        "_jit_internal.py",
        "nn/functional.py",
        "_compile.py",  # wraps our modes
        "_dynamo/eval_frame.py",
    )
)
# Packages whose releases after PopTorch 3.4 may read values, create empty tensors or query devices in a
# forward. Most ran on the simulator (docs/simulator.md). An IPU may need an older release.
_NEWER_THAN_POPTORCH = frozenset(
    "accelerate diffusers efficientnet_pytorch graphium lightning monai nflows optimum peft "
    "pytorch_lightning segmentation_models_pytorch timm torch_geometric torchdiffeq torchmetrics torchvision "
    "transformers unit_scaling vit_pytorch x_transformers".split()
)
_OPERATIONS = str(Path(_POPTORCH) / "ops")


class Caller(enum.Enum):
    """The origin of the code that calls an operation."""

    PROGRAM = "the user's program"
    LIBRARY = "PyTorch, or a library newer than PopTorch"
    POPTORCH = "an operation of PopTorch"


def caller() -> Caller:
    """The caller of the operation that a mode is intercepting."""
    frame = _calling()
    if frame.f_code.co_filename.startswith(_OPERATIONS):
        return Caller.POPTORCH
    return Caller.LIBRARY if is_library(frame) else Caller.PROGRAM


def caller_module() -> str:
    """The Python module of that caller's code."""
    return str(_calling().f_globals.get("__name__", ""))


def _calling() -> FrameType:
    """The innermost frame of an operation of PopTorch, or outside of it and of PyTorch's wrappers."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_POPTORCH, *_WRAPPERS)):
        if frame.f_code.co_filename.startswith(_OPERATIONS):
            break
        frame = frame.f_back
    return frame


def author(through_poptorch: bool = False) -> Caller:
    """Whose code asked for the operation that a mode is intercepting: PyTorch's counts as its caller's.

    :param through_poptorch: PopTorch's counts as its caller's too.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours_or_pytorchs(frame):
        if frame.f_code.co_filename.startswith(_OPERATIONS) and not through_poptorch:
            return Caller.POPTORCH
        frame = frame.f_back
    return Caller.LIBRARY if is_library(frame) else Caller.PROGRAM


def called_by_library() -> bool:
    """Whether the caller isn't the user's program."""
    return caller() is not Caller.PROGRAM


def is_library(frame: FrameType) -> bool:
    """Whether the code is PyTorch's or that of a library newer than PopTorch, by the name of its package."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return frame.f_code.co_filename.startswith(_TORCH) or package in _NEWER_THAN_POPTORCH


def place(in_program: bool = False) -> str | None:
    """FILE:LINE of the innermost caller outside PyTorch, the standard library and the simulator, if any.

    :param in_program: skip libraries newer than PopTorch too.
    """
    for frame in _outside(sys._getframe(1)):
        if not in_program or not is_library(frame):
            return place_of(frame)
    return None


def place_of(frame: FrameType, line: int | None = None) -> str:
    """FILE:LINE of a frame."""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno if line is None else line}"


def is_programs(frame: FrameType) -> bool:
    """Whether a frame is outside PyTorch, the standard library and the simulator."""
    return not _is_ours_or_pytorchs(frame)


def operation_of(frame: FrameType) -> str | None:
    """The public operation of poptorch that a frame runs, if any."""
    code = frame.f_code
    is_one = code.co_filename.startswith(_OPERATIONS) and not code.co_name.startswith(("_", "<"))
    return f"poptorch.{code.co_name}" if is_one else None


def poptorch_operation() -> str | None:
    """The operation of poptorch that calls torch, if it isn't the program itself."""
    found = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_programs(frame):
        found = operation_of(frame) or found
        frame = frame.f_back
    return found


def _is_installed(filename: str) -> bool:
    """Whether a file belongs to an installed package; site-packages may be below the standard library."""
    return any(f"{os.sep}{folder}{os.sep}" in filename for folder in ("site-packages", "dist-packages"))


def _is_ours_or_pytorchs(frame: FrameType) -> bool:
    filename = frame.f_code.co_filename
    if filename.startswith((_STANDARD_LIBRARY, "<frozen")) and not _is_installed(filename):
        return True
    return filename.startswith((_TORCH, _DROP_IN, "<compiled forward>"))


def _outside(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if not _is_ours_or_pytorchs(frame):
            yield frame
        frame = frame.f_back
