"""Classification of a sequence or a pair, as in GLUE: from the first token."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .encoder import Encoder
from .initialisation import initialise
from .losses import mean_cross_entropy


class ClassificationModel(nn.Module):
    """Encoder, pooler, dropout and one logit a class (Devlin et al. 2018, section 4.1).

    The weights come from `seed`, or from PyTorch's global generator if there is none.
    """

    def __init__(self, config: ModelConfig, num_classes: int = 2, seed: Optional[int] = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classes = nn.Linear(config.hidden_size, num_classes)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        labels: Optional[Tensor] = None,
    ) -> Tuple[Tensor, ...]:
        """Integers [B, S] three times (and [B]) -> logits [B, classes]; with labels the loss, the mean cross
        entropy of the labels that aren't -100 and a 0-d float32, comes before them."""
        x_bsh = self.encoder(input_ids, attention_mask, token_type_ids)
        logits_bc = self.classes(self.dropout(torch.tanh(self.pooler(x_bsh[:, 0]))))
        if labels is None:
            return (logits_bc,)
        return mean_cross_entropy(logits_bc, labels), logits_bc
