"""A loss over a vocabulary, and the gradient of a tied embedding, with fewer passes through memory.

In float32 both give PyTorch's bits: its kernels compute the same numbers, on a few rows at a time that stay
in the cache, or without the rows that are zero. Tensors of shapes that gain nothing, and torch.func's, take
PyTorch's way.

Letters in shapes: N samples, C classes, V rows of a table, H columns.
"""

from __future__ import annotations

from typing import Any, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F

_aten = torch.ops.aten
# What a core works on at a time: 1 MiB of float32, which its L2 cache holds. Smaller tensors gain nothing.
_ELEMENTS = 1 << 18
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # PyTorch's numbers for them


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: Optional[torch.Tensor] = None,
    size_average: Optional[bool] = None,
    ignore_index: int = -100,
    reduce: Optional[bool] = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """torch.nn.functional.cross_entropy of float32 logits [N, C] or others; those of a float32 program may
    be bfloat16. The loss is float32. A second backward pass through it isn't possible.
    """
    is_plain = label_smoothing == 0.0 and weight is None and size_average is None and reduce is None
    if is_plain and reduction in _REDUCTIONS and _pays(input, target):
        loss: torch.Tensor = _CrossEntropy.apply(input, target.long(), _REDUCTIONS[reduction], ignore_index)
        return loss
    return F.cross_entropy(
        input.float(), target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


def nll_loss_of_log_softmax(
    input: torch.Tensor,
    dim: int,
    target: torch.Tensor,
    weight: Optional[torch.Tensor] = None,
    size_average: Optional[bool] = None,
    ignore_index: int = -100,
    reduce: Optional[bool] = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """torch.nn.functional.nll_loss(log_softmax(input, dim), ...), as `cross_entropy`."""
    if input.dim() == 2 and dim in (1, -1):
        return cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction)
    likely = F.log_softmax(input.float(), dim)
    return F.nll_loss(likely, target, weight, size_average, ignore_index, reduce, reduction)


def _pays(logits: torch.Tensor, target: torch.Tensor) -> bool:
    return (
        logits.dim() == 2
        and logits.numel() >= _ELEMENTS
        and logits.is_contiguous()
        and _is_of_autograd(logits, target)
        and target.shape == logits.shape[:1]
        and target.dtype in (torch.int32, torch.int64)
    )


def _is_of_autograd(differentiated: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether there will be a backward pass, by autograd alone."""
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    is_differentiated = torch.is_grad_enabled() and differentiated.requires_grad
    return is_differentiated and not is_wrapped(differentiated) and not is_wrapped(other)


class _CrossEntropy(torch.autograd.Function):
    """The backward pass overwrites the logarithms of the probabilities, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, reduction: int, ignored: int
    ) -> torch.Tensor:
        likely = torch.empty(logits.shape)
        if logits.dtype is torch.float32:
            _aten._log_softmax.out(logits, 1, False, out=likely)
        else:
            for rows in _chunks(likely):
                likely[rows].copy_(logits[rows])
                _aten._log_softmax.out(likely[rows], 1, False, out=likely[rows])
        loss, total_weight = _aten.nll_loss_forward(likely, target, None, reduction, ignored)
        ctx.save_for_backward(target, total_weight)
        ctx.likely, ctx.dtype, ctx.reduction, ctx.ignored = likely, logits.dtype, reduction, ignored
        found: torch.Tensor = loss
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        target, total_weight = ctx.saved_tensors
        likely, ctx.likely = ctx.likely, None
        is_wide = ctx.dtype is torch.float32
        result = likely if is_wide else torch.empty(likely.shape, dtype=ctx.dtype)
        of_likely: Optional[torch.Tensor] = None
        for rows in _chunks(likely):
            own = likely[rows]
            of_likely = torch.empty_like(own) if of_likely is None else of_likely[: len(own)]
            _aten.nll_loss_backward.grad_input(
                gradients[0][rows] if gradients[0].dim() else gradients[0],
                own,
                target[rows],
                None,
                ctx.reduction,
                ctx.ignored,
                total_weight,
                grad_input=of_likely,
            )
            _aten._log_softmax_backward_data.out(of_likely, own, 1, torch.float32, out=own)
            if not is_wide:
                result[rows].copy_(own)
        return result, None, None, None


def _chunks(tensor: torch.Tensor) -> Iterator[slice]:
    """Rows to work on at a time, of [N, C]."""
    own = max(_ELEMENTS // tensor.shape[1], 1) * torch.get_num_threads()
    return (slice(start, start + own) for start in range(0, len(tensor), own))


def tied_embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: Optional[int] = None,
    max_norm: Optional[float] = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    """torch.nn.functional.embedding with a table [V, H] that another operation of the forward uses too.

    That one's gradient is [V, H]; this one's is sparse, and autograd adds its few rows to the other.
    """
    is_plain = max_norm is None and not scale_grad_by_freq and not sparse
    pays = weight.numel() >= _ELEMENTS and 2 * input.numel() <= len(weight)
    if is_plain and pays and _is_of_autograd(weight, input):
        padding = -1 if padding_idx is None else padding_idx % len(weight)
        rows: torch.Tensor = _TiedEmbedding.apply(input, weight, padding)
        return rows
    return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding = weight.shape, padding
        rows: torch.Tensor = _aten.embedding(weight, ids, padding)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        (ids,) = ctx.saved_tensors
        used, numbers = torch.unique(ids, return_inverse=True)
        padding = (used == ctx.padding).nonzero().flatten().tolist()  # of the rows in use
        rows = _aten.embedding_dense_backward(
            gradients[0], numbers, len(used), padding[0] if padding else -1, False
        )
        gradient = torch.sparse_coo_tensor(used.long().unsqueeze(0), rows, ctx.shape, check_invariants=False)
        return None, gradient._coalesced_(True), None  # sorted, each row once
