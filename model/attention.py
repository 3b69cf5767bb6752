"""Multi-head self-attention.

Letters in shapes: B sequences, S tokens, h hidden size, H heads, d = h / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ModelConfig

# Added to the scores of padded keys. Far below any score, so that the softmax gives them exactly zero in
# float32 and in float16; yet small enough that even the sum with a score is finite in float16 (largest
# number 65504).
MASKED_SCORE = -30000.0


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, S], 1 for a real token and 0 for padding -> [B, 1, 1, S] of `dtype`, to be added to scores."""
    return ((1 - attention_mask.to(dtype)) * MASKED_SCORE)[:, None, None, :]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + mask) v for each head, then a projection (Vaswani et al. 2017)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_dropout)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.scale = config.head_size**-0.5

    def forward(self, x_bsh: Tensor, mask_b11s: Tensor) -> Tensor:
        """[B, S, h], `additive_mask` -> [B, S, h].

        Matmuls and a softmax instead of the fused operator: PopTorch can't trace that one, and on CPUs it
        gains 5% in float32 but loses a third and more in bfloat16.
        """
        # Scaling the queries costs S * h multiplications, scaling the scores S * S * H.
        query_bhsd = self._heads(self.query(x_bsh) * self.scale)
        key_bhsd = self._heads(self.key(x_bsh))
        value_bhsd = self._heads(self.value(x_bsh))
        scores_bhss = torch.matmul(query_bhsd, key_bhsd.transpose(2, 3)) + mask_b11s
        probabilities_bhss = self.dropout(torch.softmax(scores_bhss, dim=-1))
        context_bhsd = torch.matmul(probabilities_bhss, value_bhsd)
        return self.output(context_bhsd.transpose(1, 2).reshape(x_bsh.shape))

    def _heads(self, x_bsh: Tensor) -> Tensor:
        batch, tokens, hidden = x_bsh.shape
        return x_bsh.view(batch, tokens, self.num_heads, hidden // self.num_heads).transpose(1, 2)
