"""Control flow and slices whose place is only known at run time."""

from __future__ import annotations

from typing import Any, Callable

import torch
from ipu_simulator import numerics

from ._trace import run as trace
from .poptorch_core import createBackendError


def _inference_only(name: str) -> bool:
    """Notes that a model uses what can't be trained; returns whether it runs on the device at all."""
    run = trace.current()
    if run is not None:
        run.inference_only.append(name)
    return run is not None


def _as_list(outputs: Any) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def for_loop(count: int, body: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Calls body(*tensors) `count` times, each with the results of the one before; on the host only once.

    For inference only. Raises ValueError where `inputs` isn't a list of tensors, and on the device
    poptorch.Error where a result has another shape or type than the tensor that it takes the place of.
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
            _check_same("poptorch.for_loop()", "input", before, "output of the body", values)
    return values


def cond(
    condition: torch.Tensor,
    then_body: Callable[..., Any],
    then_inps: list[torch.Tensor],
    else_body: Callable[..., Any],
    else_inps: list[torch.Tensor],
) -> list[torch.Tensor]:
    """A list: the results of then_body(*then_inps) where the condition holds, else of else_body(*else_inps).

    For inference only. Raises ValueError where inputs aren't lists, and on the device poptorch.Error where
    the bodies' results differ in number, shape or type.
    """
    for name, inputs in (("then_inps", then_inps), ("else_inps", else_inps)):
        if not isinstance(inputs, list):
            raise ValueError(f"poptorch.cond expects {name} to be a list of tensors. (Object is not list)")
    _inference_only("poptorch.cond()")
    if isinstance(trace.current(), trace.Trace):
        # A compilation sees both bodies.
        branches = [_as_list(then_body(*then_inps)), _as_list(else_body(*else_inps))]
        _check_same("poptorch.cond()", "output of then_body", branches[0], "output of else_body", branches[1])
        return branches[0 if bool(condition) else 1]
    return _as_list(then_body(*then_inps) if bool(condition) else else_body(*else_inps))


def _check_same(
    operation: str, what: str, expected: list[torch.Tensor], other: str, found: list[torch.Tensor]
) -> None:
    if len(expected) != len(found):
        raise createBackendError(
            f"{operation}: the number of outputs must be the same on each path: {len(expected)} times "
            f"'{what}', {len(found)} times '{other}'."
        )
    for index, (one, two) in enumerate(zip(expected, found)):
        if not isinstance(two, torch.Tensor):
            raise createBackendError(f"{operation}: {other} {index} must be a tensor, not a {type(two)}.")
        types = [numerics.device_dtype(tensor.dtype, integers=True) for tensor in (one, two)]
        if one.shape != two.shape or types[0] != types[1]:
            raise createBackendError(
                f"{operation}: shapes and types are final once a model is compiled, but {what} {index} is "
                f"{list(one.shape)} of {types[0]} and {other} {index} is {list(two.shape)} of {types[1]}."
            )


def _positions(tensor: torch.Tensor, dim: int, start: Any, size: int, step: int) -> torch.Tensor:
    if not isinstance(start, torch.Tensor):
        start = torch.tensor(start)
    if start.is_floating_point() or start.numel() != 1:
        raise ValueError("start must be one integer, in a tensor for a place that changes from run to run")
    if not isinstance(size, int) or not isinstance(step, int) or size < 1 or step < 1:
        raise ValueError(f"size and step must be positive integers: got {size} and {step}")
    if size > tensor.shape[dim]:
        raise ValueError(f"size {size} exceeds the {tensor.shape[dim]} elements of dimension {dim}")
    return start.reshape(()).to(torch.int64) + torch.arange(0, size, step)


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """tensor[start : start + size : step] along `dim`, with `start` an integer tensor of one element."""
    return torch.index_select(tensor, dim, _positions(tensor, dim, start, size, step))


def dynamic_update(
    input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int
) -> torch.Tensor:
    """A copy of `input` whose elements [start : start + size] along `dim` are those of `src`."""
    if src.dim() != input.dim() or src.dtype != input.dtype:
        raise ValueError(
            f"src must have the dimensions and type of input: {src.dim()} dimensions of {src.dtype} don't go "
            f"into {input.dim()} of {input.dtype}"
        )
    if src.shape[dim] != size:
        raise ValueError(f"src has {src.shape[dim]} elements along dimension {dim}, and size is {size}")
    return torch.index_copy(input, dim, _positions(input, dim, start, size, 1), src)
