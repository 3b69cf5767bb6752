"""PyTorch's float16 on a CPU, without its slow kernels: a dispatch mode for the default precision.

Products, convolutions and a few others take up to 70 times as long in float16 as in float32 there, or have no
float16 kernel at all in older versions. The table of operations marks them (`slow_in_float16`). Here they
compute in float32 and round once, to nearest: equal to PyTorch's results to one unit in the last place.
Unlike an IPU's arithmetic (float16.py), overflow gives infinity, and a bias isn't a second rounding.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional, Tuple

import torch

from .float16 import computed_in_float32, gives_float16, is_floating
from .float16_products import operator_of
from .nested import OperationMode, leaves


class Float16InFloat32(OperationMode):
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
        if not operator.row.slow_in_float16:
            self.saw_float16 = self.saw_float16 or _has_float16(leaves((args, kwargs)))
            return func(*args, **kwargs)
        if not (_has_float16(args) or _has_float16(kwargs.values())):
            return func(*args, **kwargs)
        self.saw_float16 = True
        if not gives_float16(operator, [leaf for leaf in args if is_floating(leaf)]):
            return func(*args, **kwargs)  # PyTorch refuses a mixture
        if kwargs or operator.writes:
            return computed_in_float32(func, operator, args, kwargs, _rounded)
        # The same for arguments without lists of tensors, with less overhead.
        result = func(*[leaf.float() if is_floating(leaf) else leaf for leaf in args])
        if isinstance(result, torch.Tensor):
            return result.half()
        kept = operator.row.float32_outputs
        return tuple([made if i in kept or made is None else _rounded(made) for i, made in enumerate(result)])


def _has_float16(leaves: Iterable[Any]) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float16 for leaf in leaves)


def _rounded(wide: torch.Tensor) -> torch.Tensor:
    return wide.half() if wide.dtype is torch.float32 else wide
