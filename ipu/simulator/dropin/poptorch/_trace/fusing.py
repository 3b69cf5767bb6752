"""Replaces calls of a tape by fused ones (ipu_simulator/numerics/fused.py) with the same float32 results."""

from __future__ import annotations

from collections import Counter
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from ipu_simulator.numerics import fused

from .replay import Slot, TapedCall, mapped

_LOG_SOFTMAXES = (F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax)
# Calls whose gradient of a weight is dense: products, and what a product takes.
_DENSE = frozenset({"__matmul__", "addmm", "linear", "matmul", "mm", "t", "transpose"})


def fusing(
    steps: Sequence[TapedCall], results: Sequence[Any], dtypes: Sequence[torch.dtype]
) -> list[TapedCall]:
    """The steps with fused losses over classes, and embeddings by tables that products use too.

    :param results: places, or tensors, that the forward gives.
    :param dtypes: of the tape's tensors, by place.
    """
    uses = Counter(place for step in steps for place in step.taken)
    uses.update(result.index for result in results if isinstance(result, Slot))
    made_at = {place: index for index, step in enumerate(steps) for place in step.made}
    multiplied = {
        id(leaf)
        for step in steps
        if getattr(step.func, "__name__", "") in _DENSE and step.grad_enabled
        for leaf in _leaves(step)
        if isinstance(leaf, torch.nn.Parameter)
    }
    fused_steps: list[TapedCall] = []
    dropped: set[int] = set()
    for index, step in enumerate(steps):
        if step.func in (F.cross_entropy, F.nll_loss) and not step.args and "input" in step.kwargs:
            named = dict(step.kwargs)
            step = step.with_call(step.func, (named.pop("input"),), named)
        first = step.args[0] if step.args else None
        wide = first.index if isinstance(first, Slot) and dtypes[first.index] is torch.float32 else None
        if step.autocast is None and step.func is F.embedding and len(step.args) > 1:
            if id(step.args[1]) in multiplied:
                step = step.with_call(fused.tied_embedding, step.args, step.kwargs)
        elif step.autocast is None and step.func is F.cross_entropy and wide is not None:
            step = step.with_call(fused.cross_entropy, step.args, step.kwargs)
        elif step.autocast is None and step.func is F.nll_loss and wide is not None and uses[wide] == 1:
            before = made_at.get(wide, index)
            taken = _taken_by_log_softmax(steps[before], step, dtypes)
            if taken is not None and not any(between.writes for between in steps[before:index]):
                dropped.add(before)
                step = step.with_call(fused.nll_loss_of_log_softmax, (*taken, *step.args[1:]), step.kwargs)
        fused_steps.append(step)
    return [step for index, step in enumerate(fused_steps) if index not in dropped]


def _taken_by_log_softmax(
    step: TapedCall, loss: TapedCall, dtypes: Sequence[torch.dtype]
) -> tuple[Slot, int] | None:
    """The logits and the dimension, if the step is a log-softmax in float32 in the loss's contexts."""
    if step.func not in _LOG_SOFTMAXES or not step.args:
        return None
    logits = step.args[0]
    dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    is_same = (step.grad_enabled, step.autocast) == (loss.grad_enabled, None)
    has_type = any(isinstance(leaf, torch.dtype) for leaf in _leaves(step))
    if not is_same or has_type or not isinstance(logits, Slot) or type(dim) is not int:
        return None
    return (logits, dim) if dtypes[logits.index] is torch.float32 else None


def _leaves(step: TapedCall) -> list[Any]:
    found: list[Any] = []
    mapped((step.args, step.kwargs), found.append)
    return found
