"""Floating-point exceptions: results that stop a program which asks for that."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from .operators import operator_of
from .rounding import FloatingPointException

# IEEE 754: comparisons for order signal where an operand is NaN, those for equality don't.
_ORDERS = frozenset("ge ge_ gt gt_ le le_ lt lt_".split())


def check(name: str, operands: Any, result: Any) -> None:
    """Raises FloatingPointException where an operation made an infinity or NaN that wasn't in its operands.

    :param operands, result: tensors and numbers, nested in any way.
    """
    made = [leaf for leaf in tree_flatten(result)[0] if _is_floating(leaf)]
    if name in _ORDERS:
        if any(_has_nan(leaf) for leaf in tree_flatten(operands)[0]):
            raise FloatingPointException(f"floating point exception, invalid operation, in {name}")
        return
    if all(_is_finite(tensor) for tensor in made):
        return
    given: List[Any] = tree_flatten(operands)[0]
    if any(_has_nan(tensor) for tensor in made):
        if not any(_has_nan(leaf) for leaf in given):
            raise FloatingPointException(f"floating point exception, invalid operation, in {name}")
    elif all(_is_finite(leaf) for leaf in given):
        raise FloatingPointException(f"floating point exception, division by zero or overflow, in {name}")


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _is_finite(leaf: Any) -> bool:
    if _is_floating(leaf):
        return bool(leaf.isfinite().all())
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _has_nan(leaf: Any) -> bool:
    if _is_floating(leaf):
        return bool(leaf.isnan().any())
    return isinstance(leaf, float) and math.isnan(leaf)


class FloatingPointExceptions(TorchDispatchMode):
    """Inside, forward and backward, an operation that makes an infinity or NaN of other numbers raises
    FloatingPointException.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = operator_of(func)
        if not operator.computes:
            return func(*args, **kwargs)
        given = (args, kwargs)
        if operator.writes or operator.writes_named:
            given = tree_map_only(torch.Tensor, torch.Tensor.clone, given)
        result = func(*args, **kwargs)
        check(operator.name, given, result)
        return result
