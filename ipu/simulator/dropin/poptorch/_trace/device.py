"""The device "ipu" by its name: `torch.ones(3, device="ipu")`, `x.to("ipu")`, `x.device` in a forward."""

from __future__ import annotations

from typing import Any

import torch

from .callers import called_by_library
from .watch import Call

# The simulator's device has the host's memory, and torch no kernels for the name.
_STANDS_FOR = torch.device("cpu")
_IPU = torch.device("ipu", 0)
_ANSWERS = {torch.Tensor.device: _IPU, torch.Tensor.is_ipu: True, torch.Tensor.is_cpu: False}


def asks_for_device(func: Any) -> bool:
    """Whether a call reads a tensor's device, or whether it is on one."""
    return getattr(func, "__self__", None) in _ANSWERS


def device_answer(func: Any) -> Any:
    """What such a call gives on the device."""
    return _ANSWERS[func.__self__]


def placed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple, dict, bool]:
    """(func, args, kwargs, whether anything changed): what stands for an IPU where the call names one."""
    if func is torch.Tensor.ipu:  # type: ignore[attr-defined]
        return torch.Tensor.to, (args[0], _STANDS_FOR), _moving(args[0]), True
    if func is torch.Tensor.to and len(args) > 1 and _is_ipu(args[1]):
        return func, (args[0], _STANDS_FOR, *args[2:]), {**kwargs, **_moving(args[0])}, True
    if _is_ipu(kwargs.get("device")):
        moving = _moving(args[0]) if func is torch.Tensor.to else {}
        return func, args, {**kwargs, "device": _STANDS_FOR, **moving}, True
    return func, args, kwargs, False


def _moving(tensor: torch.Tensor) -> dict[str, bool]:
    """A host's constant is another tensor on the device, which may change; weights are there already."""
    return {} if isinstance(tensor, torch.nn.Parameter) else {"copy": True}


def _is_ipu(device: Any) -> bool:
    if isinstance(device, str):
        return device.partition(":")[0] == "ipu"
    return isinstance(device, torch.device) and device.type == "ipu"


def place_on_ipu(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listens to the calls of a model whose compilation met the name (watch.py)."""
    if asks_for_device(func) and not called_by_library():
        return device_answer(func)
    func, args, kwargs, _ = placed(func, args, kwargs)
    return proceed(func, args, kwargs)
