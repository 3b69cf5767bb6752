"""What stands on the encoder while it is pretrained.

Letters in shapes: B sequences, S tokens, M masked positions a sequence, h hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig


def gather_positions(x_bsh: Tensor, positions_bm: Tensor) -> Tensor:
    """The tokens at `positions_bm`: [B, S, h], integers [B, M] in [0, S) -> [B * M, h]."""
    batch, tokens, hidden = x_bsh.shape
    first_rows_b1 = torch.arange(batch, device=x_bsh.device).unsqueeze(1) * tokens
    rows = (positions_bm.long() + first_rows_b1).view(-1)
    return x_bsh.reshape(batch * tokens, hidden).index_select(0, rows)


class MaskedLmHead(nn.Module):
    """Transformation, GELU, LayerNorm, then logits by the word embeddings (tied) and a bias.

    `serialized_matmul(lhs, rhs)`, where set, takes the place of the product with the word embeddings: on
    IPUs it is computed in slices of the vocabulary, to save memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.serialized_matmul: Optional[Callable[[Tensor, Tensor], Tensor]] = None

    def forward(self, x_nh: Tensor, word_embeddings_vh: Tensor) -> Tensor:
        """[N, h], [V, h] -> logits [N, V]."""
        x_nh = self.norm(F.gelu(self.transform(x_nh)))
        if self.serialized_matmul is None:
            return F.linear(x_nh, word_embeddings_vh, self.bias)
        return self.serialized_matmul(x_nh, word_embeddings_vh.t()) + self.bias


class PretrainingHeads(nn.Module):
    """Masked language modelling at the masked positions alone, and next sentence prediction from the first
    token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.masked_lm = MaskedLmHead(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.next_sentence = nn.Linear(config.hidden_size, 2)

    def forward(
        self, x_bsh: Tensor, masked_lm_positions: Tensor, word_embeddings_vh: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """[B, S, h], [B, M], [V, h] -> masked LM logits [B * M, V], next sentence logits [B, 2]."""
        masked_lm_logits = self.masked_lm(gather_positions(x_bsh, masked_lm_positions), word_embeddings_vh)
        pooled_bh = torch.tanh(self.pooler(x_bsh[:, 0]))
        return masked_lm_logits, self.next_sentence(pooled_bh)
