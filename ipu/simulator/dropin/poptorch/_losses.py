"""Which tensor of a training forward is the loss.

Every call of one of PyTorch's loss functions makes a loss, and so does identity_loss. A loss that
another one is computed from is only a step on the way; exactly one must remain.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import torch
from torch.overrides import TorchFunctionMode

from . import _trace
from ._index_casts import widened
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
# What needs a tensor's value, which a trace hasn't got.
_READS_VALUES = frozenset(
    getattr(torch.Tensor, name)
    for name in "item tolist numpy __bool__ __float__ __int__ __index__ __array__".split()
)
_LIBRARIES = str(Path(torch.__file__).parents[1])
_HERE = str(Path(__file__).parent)
_OPERATIONS = (str(Path(__file__).with_name("ops.py")), str(Path(__file__).with_name("_ops_")))


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

    def __init__(self, on_device: Iterable[torch.Tensor] = ()) -> None:
        """`on_device`: inputs, weights and buffers, which are on the device from the start."""
        super().__init__()
        self._on_device = {id(tensor) for tensor in on_device}
        self.has_narrow_indices = False
        self._ipus: list[torch.device] = []
        self._warned_of: set[str] = set()
        self._sources: dict[int, list[torch.Tensor]] = {}
        self._alive: list[torch.Tensor] = []  # so that no id is used twice

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._reads_value(func, args):
            raise createBackendError(
                "aten::item is only supported in eager mode, but was called while the model was traced."
            )
        if getattr(func, "__self__", None) is torch.Tensor.device and self.is_on_device(args[0]):
            # In `y.to(x.device)` this stands for the IPU, although it reads "cpu" here.
            device = func(*args)
            self._ipus.append(device)
            return device
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and self._names_cpu(args, kwargs)):
            raise createBackendError("Illegal move to CPU (via .cpu() or .to('cpu')) when tracing a model.")
        if func in _FACTORIES and kwargs.get("device") is None:
            self._warn_of_factory(func)
        inputs = tensors((list(args), dict(kwargs)))
        args, kwargs, changed = widened(func, args, kwargs)
        self.has_narrow_indices |= changed
        result = super().__torch_function__(func, types, args, kwargs)
        for made in tensors(result):
            if made.numel() == 0:
                raise createBackendError(
                    f"Zero-sized tensors are unsupported (Got shape {list(made.shape)})."
                )
            self._sources.setdefault(id(made), []).extend(inputs)
            # What is made of host tensors alone stays on the host.
            if not inputs or any(self.is_on_device(tensor) for tensor in inputs):
                self._on_device.add(id(made))
            self._alive.append(made)
        return result

    def _reads_value(self, func, args) -> bool:
        if func not in _READS_VALUES or not self.is_on_device(args[0]):
            return False
        return func is torch.Tensor.item or not _called_by_library()

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor was there from the start or made by the model; others are the host's."""
        return id(tensor) in self._on_device or tensor.requires_grad

    def mark_on_device(self, made: list[torch.Tensor]) -> None:
        """These come to the device although no operation seen here made them."""
        self._on_device |= {id(tensor) for tensor in made}
        self._alive += made

    def _names_cpu(self, args, kwargs) -> bool:
        target = kwargs.get("device", args[1] if len(args) > 1 else None)
        if any(target is device for device in self._ipus) or not isinstance(target, (str, torch.device)):
            return False
        return torch.device(target).type == "cpu" and not _called_by_library()

    def _warn_of_factory(self, func) -> None:
        if func.__name__ not in self._warned_of and not _called_by_library():
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


def _called_by_library() -> bool:
    """Whether the call that a mode intercepts stands in a library's code, or in that of our operations.

    Libraries newer than PopTorch look at values (transformers: whether a mask is all ones), and do without
    where they can't: a program shouldn't fail for that.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        if frame.f_code.co_filename.startswith(_OPERATIONS):
            return True
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(_LIBRARIES)
