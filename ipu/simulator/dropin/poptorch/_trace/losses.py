"""Finds the loss of a training forward.

Losses are the results of PyTorch's loss functions and of identity_loss. One that another loss is computed
from is an intermediate; exactly one final loss must remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..poptorch_core import createBackendError
from . import Call
from .call_table import row_of, rows


@dataclass(frozen=True)
class LossPlace:
    """Where later forwards find the loss: index among outputs, identity_loss calls or loss functions."""

    kind: str  # "output", "identity" or "function"
    index: int


class Losses:
    """Records the results of loss functions, in order, in `found`.

    The function mode sees calls through any reference to a function; patching torch.nn.functional wouldn't.
    """

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        result = proceed(func, args, kwargs)
        if row_of(func).loss:
            self.found.append(result)
        return result


def find_loss(
    called: list[torch.Tensor],
    marked: list[torch.Tensor],
    outputs: list[torch.Tensor],
    sources: dict[int, list[torch.Tensor]],
) -> LossPlace:
    """The place of the final loss, among results of loss functions (`called`) and identity_loss (`marked`).

    `sources`: the tensors that each tensor was computed from, by its id. Raises poptorch.Error unless there
    is exactly one final loss.
    """
    losses = [*called, *marked]
    if not losses:
        losses = [output for output in outputs if _has_gradient_of_loss(output)]
    if not losses:
        raise createBackendError("Couldn't find a loss in graph!")
    on_the_way: set[int] = set()
    for loss in losses:
        on_the_way |= _ancestors(loss, sources) & {id(other) for other in losses}
    # Nested loss functions that return the same tensor count once.
    final = {id(loss): loss for loss in losses if id(loss) not in on_the_way}
    if len(final) != 1:
        raise createBackendError(
            "Multiple independent losses found in graph. Graph must have one final loss. "
            "Wrap final graph loss in poptorch.identity_loss."
        )
    (loss,) = final.values()
    for kind, candidates in (
        ("output", outputs),
        ("identity", marked),
        ("function", called),
    ):
        for index, candidate in enumerate(candidates):
            if candidate is loss:
                return LossPlace(kind, index)
    raise AssertionError("the final loss is one of the candidates")


def _has_gradient_of_loss(tensor: torch.Tensor) -> bool:
    """For losses computed in TorchScript, whose calls the function mode doesn't see."""
    if tensor.grad_fn is None:
        return False
    node = tensor.grad_fn.name().rstrip("0123456789")
    return any(node in row.loss_nodes for row in rows().values())


def _ancestors(tensor: torch.Tensor, sources: dict[int, list[torch.Tensor]]) -> set[int]:
    """Ids of all tensors that `tensor` was computed from, directly or indirectly."""
    found: set[int] = set()
    waiting = [tensor]
    while waiting:
        for source in sources.get(id(waiting.pop()), []):
            if id(source) not in found:
                found.add(id(source))
                waiting.append(source)
    return found - {id(tensor)}
