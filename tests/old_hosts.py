"""Marks of tests that need more than PopTorch's environment has: Python 3.8 or 3.10, torch 2.0.1."""

from __future__ import annotations

import sys

import pytest
import torch

import command_line

_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

needs_verdict = pytest.mark.skipif(
    command_line.what_a_verdict_lacks() is not None, reason="a verdict needs a newer Python or torch"
)
needs_float16_on_cpu = pytest.mark.skipif(_TORCH < (2, 3), reason="PyTorch's CPU kernels lack float16")
needs_qualified_names = pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects lack co_qualname")
