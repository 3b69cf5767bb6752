"""Rewrites of calls that the device accepts and PyTorch on a CPU doesn't.

Implicit casts: an operation on float16 and float32 operands computes in float32, as on the device. PyTorch
promotes in elementwise arithmetic, but refuses mixed operands in matrix products and scatters. Layers with
weights give their first operand's type: a float16 activation stays float16 whatever its weights are (PopART's
OutputType::AsFirstInput). Operations without a float16 kernel on CPUs compute in float32.

The device "ipu" by name: `torch.ones(3, device="ipu")`, `x.to("ipu")`, `x.device` in a forward.

Narrow indices: the device has integers of 32 bits and fewer; some of PyTorch's CPU kernels require 64-bit
indices and labels.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch.nn import functional

from .._run.structure import map_leaves, tensors
from . import Call
from .call_table import CallRow, row_of
from .callers import called_by_library

_Args = tuple[Any, ...]
_Keywords = dict[str, Any]

# Attention projects its first three operands, then multiplies activations.
_QKV = ("query", "key", "value")
_LARGEST = torch.finfo(torch.float16).max


class ImplicitCasts:
    """Casts mixed float16 and float32 operands to float32, and saturates numbers to float16's range.

    `has_cast`: whether anything was cast; if not during compilation, later runs skip this listener.
    """

    def __init__(self) -> None:
        self.has_cast = False

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        row = row_of(func)
        if row.without_float16 and _first(args, kwargs).dtype is torch.float16:
            return self._widened(proceed, func, args, kwargs)
        dtype = _dtype_of_mixture(row, args, kwargs)
        if dtype is not None:
            self.has_cast = True
            return _computed_mixed(proceed, dtype, func, args, kwargs)
        elif row.saturates and _makes_float16(args, kwargs):
            self.has_cast = True
            args, kwargs = map_leaves((tuple(args), dict(kwargs)), lambda leaf: _saturated(proceed, leaf))
        try:
            return proceed(func, args, kwargs)
        except RuntimeError:
            # Maybe a missing float16 kernel: any other error occurs in float32 too.
            if torch.float16 not in _dtypes(args, kwargs):
                raise
            with contextlib.suppress(RuntimeError):
                return self._widened(proceed, func, args, kwargs)
            raise

    def _widened(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Computes in float32 and casts the result back to float16, unless the operands are mixed."""
        result = _computed_in(proceed, torch.float32, func, args, kwargs)
        self.has_cast = True
        if _is_mixture(_dtypes(args, kwargs)) or any(result is arg for arg in args):
            return result
        return map_leaves(result, lambda leaf: _cast(proceed, leaf, torch.float16))


def _dtype_of_mixture(row: CallRow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype that an operation on float16 and float32 operands gives; None if PyTorch's own rule is the
    device's, or the operands aren't mixed.
    """
    if not row.mixed or not _is_mixture(_dtypes(args, kwargs)):
        return None
    if row.mixed == "attention" and _is_mixture(_dtypes(args[:3], {key: kwargs.get(key) for key in _QKV})):
        return torch.float32
    return torch.float32 if row.mixed == "float32" else _first(args, kwargs).dtype


def _computed_mixed(
    proceed: Call, dtype: torch.dtype, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls `func`, which has float16 and float32 operands, such that its results have `dtype`."""
    try:
        if row_of(func).mixed == "first, in float32":
            result = _computed_in(proceed, torch.float32, func, args, kwargs, _first(args, kwargs))
        else:
            result = _computed_in(proceed, dtype, func, args, kwargs)
    except RuntimeError:
        if dtype is torch.float32:
            raise
        # Maybe a missing float16 kernel: any other error occurs in float32 too.
        result = _computed_in(proceed, torch.float32, func, args, kwargs)
    return map_leaves(result, lambda leaf: _cast(proceed, leaf, dtype))


def _computed_in(
    proceed: Call,
    dtype: torch.dtype,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    but: torch.Tensor | None = None,
) -> Any:
    """Calls `func` with float operands cast to `dtype`, all `but` one; copies in-place changes back to the
    originals.
    """
    copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def cast(leaf: Any) -> Any:
        if leaf is but:
            return leaf
        if id(leaf) in copies:
            return copies[id(leaf)][1]
        copy = _cast(proceed, leaf, dtype)
        if copy is not leaf:
            copies[id(leaf)] = leaf, copy
        return copy

    cast_args, cast_kwargs = map_leaves((tuple(args), dict(kwargs)), cast)
    versions = [version_of(copy) for _, copy in copies.values()]
    result = proceed(func, cast_args, cast_kwargs)
    for (original, copy), version in zip(copies.values(), versions):
        # Writes to running statistics don't increment their version.
        if version_of(copy) != version or any(original is one for one in statistics_of(func, args, kwargs)):
            proceed(torch.Tensor.copy_, (original, copy), {})
        if result is copy:
            result = original
    return result


def version_of(tensor: torch.Tensor) -> int:
    """The tensor's version counter of in-place changes; -1 for an inference tensor, which has none."""
    return -1 if tensor.is_inference() else tensor._version


def _dtypes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors((list(args), dict(kwargs)))}


def _is_mixture(dtypes: set[torch.dtype]) -> bool:
    return torch.float16 in dtypes and torch.float32 in dtypes


def statistics_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Running means and variances; torch.nn.functional's functions take them before the weights."""
    if not row_of(func).running_statistics:
        return []
    start = 1 if func in (functional.batch_norm, functional.instance_norm) else 3
    return [*args[start : start + 2], kwargs.get("running_mean"), kwargs.get("running_var")]


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    named = (kwargs[name] for name in ("input", "query") if name in kwargs)
    return tensors((list(args), *named, dict(kwargs)))[0]


def _cast(proceed: Call, leaf: Any, dtype: torch.dtype) -> Any:
    both = (torch.float16, torch.float32)
    if not isinstance(leaf, torch.Tensor) or leaf.dtype not in both:
        return leaf
    return proceed(torch.Tensor.to, (leaf, dtype), {})


def _makes_float16(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    source = args[0].dtype if args and isinstance(args[0], torch.Tensor) else None
    return (kwargs.get("dtype") or source) is torch.float16


def _saturated(proceed: Call, leaf: Any) -> Any:
    """Clamps a number or a 0-d float32 tensor to float16's range; a positive integer may be a size."""
    if isinstance(leaf, float) or (isinstance(leaf, int) and leaf < 0):
        return leaf if math.isinf(leaf) or math.isnan(leaf) else max(-_LARGEST, min(leaf, _LARGEST))
    if isinstance(leaf, torch.Tensor) and leaf.dim() == 0 and leaf.dtype is torch.float32:
        is_infinite = proceed(torch.Tensor.isinf, (leaf,), {})
        clamped = proceed(torch.Tensor.clamp, (leaf, -_LARGEST, _LARGEST), {})
        return proceed(torch.where, (is_infinite, leaf, clamped), {})
    return leaf


# ---- the device "ipu"

# The simulator's device uses the host's memory: torch has no kernels for "ipu".
_STANDS_FOR = torch.device("cpu")
_IPU = torch.device("ipu", 0)
_ANSWERS = {torch.Tensor.device: _IPU, torch.Tensor.is_ipu: True, torch.Tensor.is_cpu: False}


def asks_for_device(func: Any) -> bool:
    """Whether a call reads `device`, `is_ipu` or `is_cpu` of a tensor."""
    return getattr(func, "__self__", None) in _ANSWERS


def device_answer(func: Any) -> Any:
    """The result of such a call for a tensor on the device."""
    return _ANSWERS[func.__self__]


def placed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, _Args, _Keywords, bool]:
    """(func, args, kwargs, whether anything changed), with the device "ipu" replaced by the CPU."""
    if func is torch.Tensor.ipu:  # type: ignore[attr-defined]
        return torch.Tensor.to, (args[0], _STANDS_FOR), _moving(args[0]), True
    if func is torch.Tensor.to and len(args) > 1 and _is_ipu(args[1]):
        return func, (args[0], _STANDS_FOR, *args[2:]), {**kwargs, **_moving(args[0])}, True
    if _is_ipu(kwargs.get("device")):
        moving = _moving(args[0]) if func is torch.Tensor.to else {}
        return func, args, {**kwargs, "device": _STANDS_FOR, **moving}, True
    return func, args, kwargs, False


def _moving(tensor: torch.Tensor) -> dict[str, bool]:
    """Moving a host constant copies it, as the forward may change it; weights are on the device already."""
    return {} if isinstance(tensor, torch.nn.Parameter) else {"copy": True}


def _is_ipu(device: Any) -> bool:
    if isinstance(device, str):
        return device.partition(":")[0] == "ipu"
    return isinstance(device, torch.device) and device.type == "ipu"


def place_on_ipu(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listener for calls (watch.py) of a model whose compilation used the name."""
    if asks_for_device(func) and not called_by_library():
        return device_answer(func)
    func, args, kwargs, _ = placed(func, args, kwargs)
    return proceed(func, args, kwargs)


# ---- narrow indices

_NARROW = frozenset({torch.int32, torch.int16, torch.int8, torch.uint8})


def widened(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Args, _Keywords, bool]:
    """(args, kwargs, whether anything changed), with narrow indices and labels cast to int64."""
    place = row_of(func).indices
    if place is None:
        return args, kwargs, False
    position, keyword = place
    if position < len(args):
        index = args[position]
        if isinstance(index, torch.Tensor) and index.dtype in _NARROW:
            return (*args[:position], index.long(), *args[position + 1 :]), kwargs, True
    elif isinstance(kwargs.get(keyword), torch.Tensor) and kwargs[keyword].dtype in _NARROW:
        return args, {**kwargs, keyword: kwargs[keyword].long()}, True
    return args, kwargs, False


def widen_indices(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listener for calls (watch.py) of a model whose compilation used narrow indices."""
    args, kwargs, _ = widened(func, args, kwargs)
    return proceed(func, args, kwargs)
