"""Compilation sees shapes and types, never values.

The simulator compiles with the values of the first micro batch, which some of PyTorch's kernels check:
indices, labels, probabilities, divisors. An operation that fails is therefore computed again with values that
every check accepts. If it succeeds, the values were to blame, and only the result's shape and type matter.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .._run.structure import map_leaves, tensors
from ..poptorch_core import Error
from . import Call
from .errors import is_about_values

# Integers (indices, divisors) of both attempts; floats may be probabilities or deviations.
_INTEGERS, _FLOAT = (0, 1), 0.5


class Valueless:
    """Listeners that make operations of the device independent of values.

    :param is_on_host: whether the call in progress is computed on the host, which has values.
    """

    def __init__(self, is_on_host: Callable[[], bool]) -> None:
        self._is_on_host = is_on_host

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls and for operations (watch.py), the innermost one."""
        try:
            return proceed(func, args, kwargs)
        except Error:
            raise
        except (IndexError, RuntimeError) as error:
            if self._is_on_host() or not is_about_values(error):
                raise
            for integer in _INTEGERS if tensors((list(args), dict(kwargs))) else ():
                neutral = _Neutral(integer)
                try:
                    result = proceed(func, *map_leaves((tuple(args), dict(kwargs)), neutral.of))
                except (IndexError, RuntimeError):
                    continue
                return map_leaves(result, neutral.original)
            raise


class _Neutral:
    """Replaces tensors by others of the same shapes and types."""

    def __init__(self, integer: int) -> None:
        self._integer = integer
        self._pairs: list[tuple[Any, Any]] = []  # an original, its substitute

    def of(self, leaf: Any) -> Any:
        """The substitute."""
        if not isinstance(leaf, torch.Tensor):
            return leaf
        for original, substitute in self._pairs:
            if original is leaf:
                return substitute
        value = _FLOAT if leaf.is_floating_point() else self._integer
        with _disable_current_modes(), torch.no_grad():
            substitute = torch.full_like(leaf, value)
        self._pairs.append((leaf, substitute.requires_grad_(leaf.requires_grad)))
        return substitute

    def original(self, leaf: Any) -> Any:
        """The tensor that a substitute replaces; any other result is kept."""
        return next((original for original, substitute in self._pairs if substitute is leaf), leaf)
