"""Who calls: the user's program, a library newer than PopTorch, or one of PopTorch's own operations.

PopTorch's rules are the same for all code, wherever its file is. The simulator is more lenient only to
PyTorch and to the libraries named here, whose current releases are newer than PopTorch.
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

_TORCH = str(Path(torch.__file__).parent)
_POPTORCH = str(Path(__file__).parents[1])
_DROP_IN = str(Path(__file__).parents[2])
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
# PyTorch's own functions in front of operations: whoever calls them is the caller.
_WRAPPERS = tuple(
    str(Path(_TORCH) / name)
    for name in (
        "overrides.py",
        "_tensor.py",
        "functional.py",
        "_jit_internal.py",
        "nn/functional.py",
        "_compile.py",  # around our own modes
        "_dynamo/eval_frame.py",
    )
)
# Packages whose releases after PopTorch 3.4 may look at values, hold empty tensors or ask for devices in a
# forward. Most ran on the simulator (docs/simulator.md). An older release may be needed on an IPU.
_NEWER_THAN_POPTORCH = frozenset(
    "accelerate diffusers efficientnet_pytorch graphium lightning monai nflows optimum peft "
    "pytorch_lightning segmentation_models_pytorch timm torch_geometric torchdiffeq torchmetrics torchvision "
    "transformers unit_scaling vit_pytorch x_transformers".split()
)
_OPERATIONS = str(Path(_POPTORCH) / "ops")


class Caller(enum.Enum):
    """Whose code calls an operation."""

    PROGRAM = "the user's program"
    LIBRARY = "PyTorch, or a library newer than PopTorch"
    POPTORCH = "an operation of PopTorch"


def caller() -> Caller:
    """Of the call that a mode intercepts now."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_POPTORCH, *_WRAPPERS)):
        if frame.f_code.co_filename.startswith(_OPERATIONS):
            return Caller.POPTORCH
        frame = frame.f_back
    return Caller.LIBRARY if _is_library(frame) else Caller.PROGRAM


def called_by_library() -> bool:
    """Whether it isn't the user's program that calls."""
    return caller() is not Caller.PROGRAM


def _is_library(frame: FrameType) -> bool:
    """Whether the code is PyTorch's or that of a library newer than PopTorch, by the name of its package."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return frame.f_code.co_filename.startswith(_TORCH) or package in _NEWER_THAN_POPTORCH


def place(in_program: bool = False) -> str | None:
    """FILE:LINE of the innermost caller outside PyTorch, Python's library and the simulator, if any.

    :param in_program: libraries newer than PopTorch don't count either.
    """
    for frame in _outside(sys._getframe(1)):
        if not in_program or not _is_library(frame):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    return None


def _is_installed(filename: str) -> bool:
    """Whether a file below the standard library's folder is that of an installed package."""
    return any(f"{os.sep}{folder}{os.sep}" in filename for folder in ("site-packages", "dist-packages"))


def _outside(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        filename = frame.f_code.co_filename
        of_python = filename.startswith((_STANDARD_LIBRARY, "<frozen")) and not _is_installed(filename)
        if not of_python and not filename.startswith((_TORCH, _DROP_IN, "<compiled forward>")):
            yield frame
        frame = frame.f_back
