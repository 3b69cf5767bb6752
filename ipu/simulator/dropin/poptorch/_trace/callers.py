"""Who calls: the user's program, an installed library, or one of PopTorch's own operations."""

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
# Where Python's installers put packages.
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OPERATIONS = str(Path(_POPTORCH) / "ops")


class Caller(enum.Enum):
    """Whose code calls an operation."""

    PROGRAM = "the user's program"
    LIBRARY = "an installed package, PyTorch among them"
    POPTORCH = "an operation of PopTorch"


def caller() -> Caller:
    """Of the call that a mode intercepts now."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_POPTORCH, *_WRAPPERS)):
        if frame.f_code.co_filename.startswith(_OPERATIONS):
            return Caller.POPTORCH
        frame = frame.f_back
    return Caller.LIBRARY if _is_library(frame.f_code.co_filename) else Caller.PROGRAM


def called_by_library() -> bool:
    """Whether it isn't the user's program that calls."""
    return caller() is not Caller.PROGRAM


def _is_library(filename: str) -> bool:
    """Whether a source file belongs to an installed package other than the simulator itself."""
    if filename.startswith(_DROP_IN):
        return False
    return filename.startswith(_TORCH) or any(folder in filename for folder in _PACKAGES)


def place(in_program: bool = False) -> str | None:
    """FILE:LINE of the innermost caller outside PyTorch, Python's library and the simulator, if any.

    :param in_program: installed packages don't count either.
    """
    for frame in _outside(sys._getframe(1)):
        if not in_program or not _is_library(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    return None


def _outside(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        filename = frame.f_code.co_filename
        of_python = filename.startswith((_STANDARD_LIBRARY, "<frozen")) and not _is_library(filename)
        if not of_python and not filename.startswith((_TORCH, _DROP_IN, "<compiled forward>")):
            yield frame
        frame = frame.f_back
