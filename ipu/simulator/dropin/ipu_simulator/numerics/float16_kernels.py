"""PyTorch's float16 on a CPU, without its slow kernels: a dispatch mode for the default precision.

Products, convolutions and a few others take up to 70 times as long in float16 as in float32 there, or have no
float16 kernel at all in older versions. The table of operations marks them (`slow_in_float16`). Here they
compute in float32 and round once, to nearest: equal to PyTorch's results to one unit in the last place.
Unlike an IPU's arithmetic (float16.py), overflow gives infinity, and a bias isn't a second rounding.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .float16 import computed_in_float32, gives_float16, is_floating
from .float16_products import operator_of


class Float16InFloat32(TorchDispatchMode):
    """Inside, forward and backward, operations on float16 tensors avoid PyTorch's slow kernels.

    `saw_float16`: whether an operation had a float16 operand; a program without one doesn't need the mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.saw_float16 = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = operator_of(func)
        if self.saw_float16 and not operator.row.slow_in_float16:
            return func(*args, **kwargs)
        operands = [leaf for leaf in tree_flatten((args, kwargs))[0] if is_floating(leaf)]
        self.saw_float16 |= any(operand.dtype is torch.float16 for operand in operands)
        if not operator.row.slow_in_float16 or not gives_float16(operator, operands):
            return func(*args, **kwargs)
        return computed_in_float32(func, operator, args, kwargs, _rounded)


def _rounded(wide: torch.Tensor) -> torch.Tensor:
    return wide.half() if wide.dtype is torch.float32 else wide
