"""torch.inference_mode is the program's: the device trains, and keeps its weights, whatever it says."""

from __future__ import annotations

import functools
from typing import Callable, Concatenate, ParamSpec, Protocol, TypeVar

import torch


class Executor(Protocol):
    """What has a model that may have been made in torch.inference_mode."""

    is_of_inference_mode: bool


E = TypeVar("E", bound=Executor)
P = ParamSpec("P")
R = TypeVar("R")


def outside_inference_mode(
    method: Callable[Concatenate[E, P], R],
) -> Callable[Concatenate[E, P], R]:
    """An executor's method, run outside torch.inference_mode, in which PyTorch records no gradients and makes
    tensors that can't be changed elsewhere. A model whose own tensors are such stays inside.
    """

    @functools.wraps(method)
    def outside(executor: E, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled() or executor.is_of_inference_mode:
            return method(executor, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return method(executor, *args, **kwargs)

    return outside


def is_of_inference_mode(model: torch.nn.Module) -> bool:
    """Whether a model was made in torch.inference_mode, so that it can't train."""
    tensors = [*model.parameters(), *model.buffers()]
    return any(not torch.nn.parameter.is_lazy(tensor) and tensor.is_inference() for tensor in tensors)
