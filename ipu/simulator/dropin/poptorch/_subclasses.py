"""Tensor classes of a program's own, made in a forward: PyTorch can't make them where a mode looks at
operations, as the tensor that it would turn into one has been seen by Python then.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any, Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes


def _new(cls: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    if cls is torch.Tensor:
        return _original(cls, *args, **kwargs)
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        return args[0].as_subclass(cls)  # the same as an operation, which is seen
    with _disable_current_modes():  # of numbers or sizes: the host's
        return _original(cls, *args, **kwargs)


_original = torch.Tensor.__new__


@contextlib.contextmanager
def subclasses_can_be_made() -> Iterator[None]:
    """Stands inside the modes that look at operations."""
    if "__new__" in vars(torch.Tensor):  # a model inside a model
        yield
        return
    if "torch._compile" in sys.modules:
        # PyTorch imports this with the first operation that a mode sees, and looks at the constructor then.
        importlib.import_module("torch._dynamo")
    torch.Tensor.__new__ = staticmethod(_new)
    try:
        yield
    finally:
        del torch.Tensor.__new__
