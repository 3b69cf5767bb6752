"""Which tensor of a training forward is the loss.

Every call of one of PyTorch's loss functions makes a loss, and so does identity_loss. A loss that
another one is computed from is only a step on the way; exactly one must remain.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from . import _trace
from ._logging import logger
from ._structure import tensors
from .poptorch_core import createBackendError

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

# What makes a tensor of none; torch's own modules give their device where it matters.
_NAMES = "arange empty eye full linspace logspace ones rand randint randn randperm tensor zeros"
_FACTORIES = frozenset(getattr(torch, name) for name in _NAMES.split())
_TORCH_FOLDER = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class LossPlace:
    """Where later forwards find the loss: the index-th output, identity_loss or loss function."""

    kind: str  # "output", "identity" or "function"
    index: int


class LossTap(TorchFunctionMode):
    """Keeps what loss functions return.

    A mode sees calls through any reference to a function, which patching torch.nn.functional wouldn't.
    """

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[torch.Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _LOSS_NAMES:
            self.losses.append(result)
        return result


class CompileTap(LossTap):
    """Stands around the compiling run: losses, which tensor was made from which, and what a graph can't
    hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self._warned_of: set[str] = set()
        self._sources: dict[int, list[torch.Tensor]] = {}
        self._alive: list[torch.Tensor] = []  # so that no id is used twice

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.item:
            raise createBackendError(
                "aten::item is only supported in eager mode, but was called while the model was traced."
            )
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and _names_cpu(args, kwargs)):
            raise createBackendError("Illegal move to CPU (via .cpu() or .to('cpu')) when tracing a model.")
        if func in _FACTORIES and kwargs.get("device") is None:
            self._warn_of_factory(func)
        result = super().__torch_function__(func, types, args, kwargs)
        inputs = tensors((list(args), dict(kwargs)))
        for made in tensors(result):
            if made.numel() == 0:
                raise createBackendError(
                    f"Zero-sized tensors are unsupported (Got shape {list(made.shape)})."
                )
            self._sources.setdefault(id(made), []).extend(inputs)
            self._alive.append(made)
        return result

    def _warn_of_factory(self, func) -> None:
        caller = sys._getframe(2).f_code.co_filename
        if func.__name__ not in self._warned_of and not caller.startswith(_TORCH_FOLDER):
            self._warned_of.add(func.__name__)
            logger.warning(
                "torch.%s was called without a device while the model was traced: the tensor is put on the "
                "IPU. Give it the device of another tensor (device=x.device) to say so.",
                func.__name__,
            )

    def find_loss(self, run: _trace.Run, outputs: list[torch.Tensor]) -> LossPlace:
        """Raises poptorch.Error unless exactly one loss remains."""
        losses = [*self.losses, *run.identity_losses]
        if not losses:
            raise createBackendError("Couldn't find a loss in graph!")
        on_the_way: set[int] = set()
        for loss in losses:
            on_the_way |= self._ancestors(loss) & {id(other) for other in losses}
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
            ("identity", run.identity_losses),
            ("function", self.losses),
        ):
            for index, candidate in enumerate(candidates):
                if candidate is loss:
                    return LossPlace(kind, index)
        raise AssertionError("the final loss is one of the candidates")

    def _ancestors(self, tensor: torch.Tensor) -> set[int]:
        """Ids of all tensors that `tensor` was computed from."""
        found: set[int] = set()
        waiting = [tensor]
        while waiting:
            for source in self._sources.get(id(waiting.pop()), []):
                if id(source) not in found:
                    found.add(id(source))
                    waiting.append(source)
        return found - {id(tensor)}


def _names_cpu(args, kwargs) -> bool:
    target = kwargs.get("device", args[1] if len(args) > 1 else None)
    return isinstance(target, (str, torch.device)) and torch.device(target).type == "cpu"
