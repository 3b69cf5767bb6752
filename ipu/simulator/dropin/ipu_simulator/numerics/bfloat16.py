"""Products in bfloat16: the conversions, and the weights' copies.

Weights, gradients of weights, moments and losses stay float32. A product's operands are rounded to bfloat16
(8 bits of mantissa, float32's range) and its sums are float32 inside the CPU's instructions.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Tuple, Union

import torch
import torch.nn.functional as F

_LARGEST = torch.finfo(torch.bfloat16).max


def saturated(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in bfloat16; finite numbers stay finite, as masks of float32's lowest number must."""
    narrow = tensor.to(torch.bfloat16)
    return torch.where(tensor.isfinite(), narrow.clamp(-_LARGEST, _LARGEST), narrow)


def saturated_number(number: Any) -> Any:
    """A number that bfloat16 can hold: PyTorch refuses those beyond its range. Infinities stay."""
    if not isinstance(number, float) or not math.isfinite(number):
        return number
    return min(max(number, -_LARGEST), _LARGEST)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in bfloat16, to nearest."""
    return tensor.to(torch.bfloat16)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, exactly."""
    return tensor.to(torch.float32)


class WeightCopies:
    """Weights in bfloat16, each rounded once until `forget`, which follows every update of the weights.

    A weight that the forward itself writes to is rounded again.
    """

    def __init__(self) -> None:
        self._copies: Dict[int, Tuple[int, torch.Tensor]] = {}  # by weight: its version, and the copy

    def forget(self) -> None:
        self._copies.clear()

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in bfloat16; its gradient is float32."""
        if torch.is_grad_enabled() and weight.requires_grad:
            of_weight: torch.Tensor = _Rounded.apply(weight, self)
            return of_weight
        return self.copy_of(weight)

    def copy_of(self, weight: torch.Tensor) -> torch.Tensor:
        version, copy = self._copies.get(id(weight), (-1, None))
        if copy is None or version != weight._version:
            copy = weight.detach().to(torch.bfloat16)
            self._copies[id(weight)] = weight._version, copy
        return copy


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, copies: WeightCopies) -> torch.Tensor:
        return copies.copy_of(weight).detach()  # autograd writes to the tensor object that it is given

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Tuple[torch.Tensor, None]:
        return gradients[0].to(torch.float32), None


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[torch.Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch.nn.functional.scaled_dot_product_attention by plain products.

    In bfloat16 the fused kernel is slower on CPUs: 0.53 to 0.72 times the speed with AMX.
    """
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(after, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + saturated(attn_mask)
    probabilities = torch.softmax(scores, -1)
    if dropout_p:
        probabilities = torch.dropout(probabilities, dropout_p, True)
    return probabilities @ value


def conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    stride: Union[int, Tuple[int, ...]] = 1,
    padding: Union[str, int, Tuple[int, ...]] = 0,
    dilation: Union[int, Tuple[int, ...]] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """torch.nn.functional.conv1d; one of [B, C, S] that is a transposed [B, S, C] stays in that layout.

    As a convolution of images of height 1, with channels last: PyTorch's own conv1d transposes its operand.
    The result is transposed too.
    """
    if input.dim() != 3 or not input.transpose(1, 2).is_contiguous():
        return F.conv1d(input, weight, bias, stride, padding, dilation, groups)
    image, kernel = input.unsqueeze(2), weight.unsqueeze(2)
    padded = padding if isinstance(padding, str) else (0, _one(padding))
    convolved = F.conv2d(image, kernel, bias, (1, _one(stride)), padded, (1, _one(dilation)), groups)
    return convolved.squeeze(2)


def _one(size: Union[int, Tuple[int, ...]]) -> int:
    return size if isinstance(size, int) else size[0]
