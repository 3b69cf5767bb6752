"""Floating-point exceptions where nothing else of an IPU's arithmetic is emulated."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .exceptions import check
from .float16 import operation_of


class FloatingPointExceptions(TorchDispatchMode):
    """Inside, forward and backward, an operation that makes an infinity or NaN of other numbers raises
    FloatingPointException.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = operation_of(func)
        if not operation.computes:
            return func(*args, **kwargs)
        given = (args, kwargs)
        if operation.writes or operation.writes_named:
            given = tree_map_only(torch.Tensor, torch.Tensor.clone, given)
        result = func(*args, **kwargs)
        check(operation.name, given, result)
        return result
