"""IPU_SIMULATOR_PRECISION=float32-onednn: which calls, of a tape or as they come, are oneDNN's products."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from ipu_simulator.numerics import onednn

from . import Call
from .replay import Slot, TapedCall, autocast_now

# By the function's name, as calls see it. They take PyTorch's way with operands that don't fit.
_INSTEAD: dict[str, Callable[..., torch.Tensor]] = {
    "__matmul__": onednn.matmul,
    "addmm": onednn.addmm,
    "linear": onednn.linear,
    "matmul": onednn.matmul,
    "mm": onednn.mm,
}


def by_onednn(steps: Sequence[TapedCall]) -> list[TapedCall]:
    """The steps with oneDNN's products."""
    return [
        step.with_call(_INSTEAD[_name(step.func)], step.args, step.kwargs)
        if step.autocast is None and _is_product(step.func, step.args, step.kwargs)
        else step
        for step in steps
    ]


def on_call(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listener for calls (watch.py) of a forward that has no tape."""
    if autocast_now() is None and _is_product(func, args, kwargs):
        func = _INSTEAD[_name(func)]
    return proceed(func, args, kwargs)


def _is_product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it has one that takes these arguments: tensors, and no other type or place for the result."""
    operands = (*args, *kwargs.values())
    return (
        _name(func) in _INSTEAD
        and "out" not in kwargs
        and all(operand is None or isinstance(operand, (Slot, torch.Tensor)) for operand in operands)
    )


def _name(func: Any) -> str:
    return getattr(func, "__name__", "")
