"""Control flow, and slices whose start is only known at run time."""

from __future__ import annotations

from typing import Any, Callable

import torch
from ipu_simulator import numerics

from ._trace import run as trace
from .poptorch_core import createBackendError


def _inference_only(name: str) -> bool:
    """Records that a model uses an inference-only operation; returns whether it runs on the device."""
    run = trace.current()
    if run is not None:
        run.inference_only.append(name)
    return run is not None


def _as_list(outputs: Any) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def for_loop(count: int, body: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Calls body(*tensors) `count` times, each time with the previous results; on the host only once.

    For inference only. Raises ValueError if `inputs` isn't a list of tensors; on the device, poptorch.Error
    if a result's shape or dtype differs from the corresponding input's.
    """
    what = "poptorch.for_loop expects input tensors (inputs) to be a list of tensors."
    if not isinstance(inputs, list):
        raise ValueError(f"{what} (Object is not list)")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{what} (Element {index} is not a tensor)")
    on_device = _inference_only("poptorch.for_loop()")
    values = [tensor.clone() for tensor in inputs]
    for _ in range(count if on_device else 1):
        before, values = values, _as_list(body(*values))
        if on_device:
            check_same("poptorch.for_loop()", "input", before, "output of the body", values)
    return values


def cond(
    condition: torch.Tensor,
    then_body: Callable[..., Any],
    then_inps: list[torch.Tensor],
    else_body: Callable[..., Any],
    else_inps: list[torch.Tensor],
) -> list[torch.Tensor]:
    """The results of then_body(*then_inps) if the condition is true, else of else_body(*else_inps): a list.

    For inference only. Raises ValueError if inputs aren't lists; on the device, poptorch.Error if the bodies'
    results differ in number, shape or dtype.
    """
    for name, inputs in (("then_inps", then_inps), ("else_inps", else_inps)):
        if not isinstance(inputs, list):
            raise ValueError(f"poptorch.cond expects {name} to be a list of tensors. (Object is not list)")
    _inference_only("poptorch.cond()")
    if isinstance(trace.current(), trace.Trace):
        # Compilation traces both branches.
        branches = [_as_list(then_body(*then_inps)), _as_list(else_body(*else_inps))]
        check_same("poptorch.cond()", "output of then_body", branches[0], "output of else_body", branches[1])
        return branches[0 if bool(condition) else 1]
    return _as_list(then_body(*then_inps) if bool(condition) else else_body(*else_inps))


def chosen(
    condition: torch.Tensor, then_outputs: list[torch.Tensor], else_outputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    """`then_outputs` if the condition is true, else `else_outputs`. poptorch.Error unless they are alike."""
    check_same("poptorch.cond()", "output of then_body", then_outputs, "output of else_body", else_outputs)
    flag = condition.reshape(()).to(torch.bool)
    return [torch.where(flag, one, other) for one, other in zip(then_outputs, else_outputs)]


def check_same(
    operation: str, what: str, expected: list[torch.Tensor], other: str, found: list[torch.Tensor]
) -> None:
    if len(expected) != len(found):
        raise createBackendError(
            f"{operation}: the number of outputs must be the same on each path: got {len(expected)} of "
            f"'{what}' and {len(found)} of '{other}'."
        )
    for index, (one, two) in enumerate(zip(expected, found)):
        if not isinstance(two, torch.Tensor):
            raise createBackendError(f"{operation}: {other} {index} must be a tensor, not a {type(two)}.")
        types = [numerics.device_dtype(tensor.dtype, integers=True) for tensor in (one, two)]
        if one.shape != two.shape or types[0] != types[1]:
            raise createBackendError(
                f"{operation}: shapes and types are fixed at compilation, but {what} {index} is "
                f"{list(one.shape)} of {types[0]} and {other} {index} is {list(two.shape)} of {types[1]}."
            )


def _positions(tensor: torch.Tensor, dim: int, start: Any, size: int, step: int) -> torch.Tensor:
    """The positions of a slice. Raises poptorch.Error for one that a device can't take."""
    if not isinstance(start, torch.Tensor):
        raise createBackendError(
            f"The start of the slice must be a tensor, not {start!r} ({type(start).__name__}). If it never "
            f"changes, slice as Python does: tensor[{start!r}:...]."
        )
    if start.is_floating_point() or start.dtype is torch.bool or start.numel() != 1:
        raise createBackendError(
            f"The start of the slice must be one integer, not {list(start.shape)} of {start.dtype}."
        )
    if not isinstance(size, int) or not isinstance(step, int) or size < 1 or step < 1:
        raise createBackendError(
            f"The size and the step of the slice must be positive integers, not {size!r} and {step!r}."
        )
    if tensor.shape[dim] % size:
        raise createBackendError(
            f"The size of the slice ({size}) must be a factor of the slicing dimension ({tensor.shape[dim]})."
        )
    first: torch.Tensor = start.reshape(()).to(torch.int64)
    return first + torch.arange(0, size, step)


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """tensor[start : start + size : step] along `dim`; `start` is an integer tensor of one element.

    Raises poptorch.Error for another `start`, for `size` or `step` below 1, and for a `size` that doesn't
    divide the dimension.
    """
    return torch.index_select(tensor, dim, _positions(tensor, dim, start, size, step))


def dynamic_update(
    input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int
) -> torch.Tensor:
    """A copy of `input` whose elements [start : start + size] along `dim` are those of `src`.

    Raises poptorch.Error if number of dimensions, dtype or size of `src` don't fit, and as `dynamic_slice`
    does.
    """
    if src.dim() != input.dim() or src.dtype != input.dtype:
        raise createBackendError(
            f"The source of an update must have as many dimensions as its input, and its type: got "
            f"{src.dim()} of {src.dtype} for {input.dim()} of {input.dtype}."
        )
    positions = _positions(input, dim, start, size, 1)
    if src.shape[dim] != size:
        raise createBackendError(
            f"The source of an update has {src.shape[dim]} elements along dimension {dim}, but its size is "
            f"{size}."
        )
    return torch.index_copy(input, dim, positions, src)
