"""Who calls an operation: the program, or a library that it uses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

# PyTorch's own functions in front of operations: whoever calls them is the caller.
_WRAPPERS = tuple(
    str(Path(torch.__file__).parent / name)
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
_TORCH = str(Path(torch.__file__).parent)
# Where Python's installers put packages; torch may have come otherwise.
_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}", _TORCH)
_HERE = str(Path(__file__).parent)
_SIMULATOR = str(Path(__file__).parents[2])
_OPERATIONS = (str(Path(__file__).with_name("ops.py")), str(Path(__file__).with_name("_ops_")))


def called_by_library() -> bool:
    """Whether the call that a mode intercepts stands in a library's code, or in that of our operations.

    Libraries newer than PopTorch look at values (transformers: whether a mask is all ones), and do without
    where they can't: a program shouldn't fail for that.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_HERE, *_WRAPPERS)):
        if frame.f_code.co_filename.startswith(_OPERATIONS):
            return True
        frame = frame.f_back
    return any(folder in frame.f_code.co_filename for folder in _LIBRARIES)


def computed_by_library() -> bool:
    """Whether an operation that runs now stands in another library's code than PyTorch's, whose layers and
    functions compute for whoever calls them.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_SIMULATOR, _TORCH)):
        frame = frame.f_back
    return any(folder in frame.f_code.co_filename for folder in _LIBRARIES)
