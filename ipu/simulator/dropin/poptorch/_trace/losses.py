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

# By name, because torch, torch.nn.functional and torch._C._nn have different objects for the same function.
_LOSS_NAMES = frozenset(
    {
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "cosine_embedding_loss",
        "cross_entropy",
        "cross_entropy_loss",
        "ctc_loss",
        "gaussian_nll_loss",
        "hinge_embedding_loss",
        "huber_loss",
        "kl_div",
        "l1_loss",
        "margin_ranking_loss",
        "mse_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "multilabel_soft_margin_loss",
        "nll_loss",
        "nll_loss_nd",
        "poisson_nll_loss",
        "smooth_l1_loss",
        "soft_margin_loss",
        "triplet_margin_loss",
        "triplet_margin_with_distance_loss",
    }
)


# Their autograd nodes, for losses computed in TorchScript, whose calls the function mode doesn't see.
_GRADIENTS = tuple(
    f"{name}Backward"
    for name in "BinaryCrossEntropy BinaryCrossEntropyWithLogits CtcLoss HuberLoss KlDiv MseLoss "
    "MultiMarginLoss MultilabelMarginLoss NllLoss SmoothL1Loss SoftMarginLoss".split()
) + ("NllLoss2DBackward",)


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
        if getattr(func, "__name__", "") in _LOSS_NAMES:
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
    return tensor.grad_fn is not None and tensor.grad_fn.name().rstrip("0123456789") in _GRADIENTS


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
