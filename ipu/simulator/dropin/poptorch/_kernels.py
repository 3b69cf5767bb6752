"""Which of PyTorch's kernels a run may use."""

from __future__ import annotations

import contextlib
from typing import Iterator

import torch

# Before this version, oneDNN's gradients of one-dimensional convolutions can be garbage: seen with 2.0.1 in
# plain PyTorch, where 2.13, and 2.0.1 without oneDNN, give what float64 does.
_WRONG_ONEDNN = (2, 1)


@contextlib.contextmanager
def trusted_kernels(version: str = torch.__version__) -> Iterator[None]:
    """Inside, nothing computes by a kernel that is known to be wrong in this version of PyTorch."""
    major, minor = version.split(".")[:2]
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and (int(major), int(minor)) >= _WRONG_ONEDNN
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
