"""Which dtypes the device has: no 64-bit types and no bfloat16."""

from __future__ import annotations

import torch

_FLOATS = {torch.float64: torch.float32, torch.bfloat16: torch.float32}
_INTEGERS = {torch.int64: torch.int32}


def device_dtype(dtype: torch.dtype, integers: bool = False) -> torch.dtype:
    """The dtype that stands for `dtype`; 64-bit integers narrow only if `integers`.

    Inside a step 64-bit integers stay as they are, because PyTorch's CPU kernels index with them;
    they narrow where they come back to the host.
    """
    dtype = _FLOATS.get(dtype, dtype)
    return _INTEGERS.get(dtype, dtype) if integers else dtype


def to_device_dtype(tensor: torch.Tensor, integers: bool = False, copy: bool = False) -> torch.Tensor:
    """`tensor` in its device dtype: itself where that is the same and no copy is asked for."""
    return tensor.to(device_dtype(tensor.dtype, integers), copy=copy)
