"""The feed-forward module, dense (BERT) or grouped (GroupBERT)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .grouped import GroupedConvolution


class FeedForward(nn.Module):
    """h -> 4h, GELU (exact, by erf), 4h -> h; in grouped variants 4h -> h is `ffn_groups` independent
    matmuls, which "grouped_projected" mixes with a dense h -> h (Chelombiev et al. 2021, arXiv
    2106.05822)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.expansion = nn.Linear(hidden, inner)
        self.contraction: nn.Module
        if config.feed_forward == "dense":
            self.contraction = nn.Linear(inner, hidden)
        else:
            self.contraction = GroupedConvolution(inner, hidden, groups=config.ffn_groups)
        self.projection: nn.Module
        if config.feed_forward == "grouped_projected":
            self.projection = nn.Linear(hidden, hidden)
        else:
            self.projection = nn.Identity()

    def forward(self, x_bsh: Tensor) -> Tensor:
        """[B, S, h] -> [B, S, h], each token by itself."""
        return self.projection(self.contraction(F.gelu(self.expansion(x_bsh))))
