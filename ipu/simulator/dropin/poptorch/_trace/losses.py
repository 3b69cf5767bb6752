"""Which tensor of a training forward is the loss.

Every call of one of PyTorch's loss functions makes a loss, and so does identity_loss. A loss that another one
is computed from is only a step on the way; exactly one must remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..poptorch_core import createBackendError
from .watch import Call

# By name, because the same function goes by several objects (torch, torch.nn.functional, torch._C._nn).
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


# What autograd calls their gradients, for losses out of TorchScript, whose calls no mode sees.
_GRADIENTS = tuple(
    f"{name}Backward"
    for name in "BinaryCrossEntropy BinaryCrossEntropyWithLogits CtcLoss HuberLoss KlDiv MseLoss "
    "MultiMarginLoss MultilabelMarginLoss NllLoss SmoothL1Loss SoftMarginLoss".split()
) + ("NllLoss2DBackward",)


@dataclass(frozen=True)
class LossPlace:
    """Where later forwards find the loss: the index-th output, identity_loss or loss function."""

    kind: str  # "output", "identity" or "function"
    index: int


class Losses:
    """`found`: what loss functions returned, in order.

    A mode sees calls through any reference to a function, which patching torch.nn.functional wouldn't.
    """

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listens to calls (watch.py)."""
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
    """Where the one final loss is, among those of loss functions (`called`) and of identity_loss (`marked`).

    `sources`: what each tensor was made of, by its id. Raises poptorch.Error unless exactly one remains.
    """
    losses = [*called, *marked]
    if not losses:
        losses = [output for output in outputs if _has_gradient_of_loss(output)]
    if not losses:
        raise createBackendError("Couldn't find a loss in graph!")
    on_the_way: set[int] = set()
    for loss in losses:
        on_the_way |= _ancestors(loss, sources) & {id(other) for other in losses}
    # A loss function that hands a loss of its own on (identity of tensors) counts once.
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
    """Ids of all tensors that `tensor` was computed from."""
    found: set[int] = set()
    waiting = [tensor]
    while waiting:
        for source in sources.get(id(waiting.pop()), []):
            if id(source) not in found:
                found.add(id(source))
                waiting.append(source)
    return found - {id(tensor)}
