"""The pretraining model: encoder, heads and losses."""

from __future__ import annotations

from typing import Optional, Tuple

from torch import Tensor, nn

from .config import ModelConfig
from .encoder import Encoder
from .heads import PretrainingHeads
from .initialisation import initialise
from .losses import correct_and_count, mean_cross_entropy

# What `forward` returns, in order. Counts are floats, so that they sum over devices like the losses.
PRETRAINING_OUTPUTS = (
    "loss",
    "mlm_loss",
    "nsp_loss",
    "mlm_correct",
    "mlm_count",
    "nsp_correct",
    "nsp_count",
)


class PretrainingModel(nn.Module):
    """Masked language modelling plus next sentence prediction (Devlin et al. 2018).

    The weights come from `seed`, or from PyTorch's global generator if there is none.
    """

    def __init__(self, config: ModelConfig, seed: Optional[int] = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.heads = PretrainingHeads(config)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        masked_lm_positions: Tensor,
        masked_lm_labels: Tensor,
        next_sentence_labels: Tensor,
    ) -> Tuple[Tensor, ...]:
        """Integers [B, S], [B, S] (1 real, 0 padding), [B, S], [B, M], [B, M] and [B] ->
        PRETRAINING_OUTPUTS, each a 0-d float32.

        A label of -100 is ignored. A next sentence label is 1 where the second sentence is a random one, 0
        where it continues the first. Losses are means over the real labels of this batch, 0 where there are
        none; loss = mlm_loss + nsp_loss.
        """
        masked_lm_logits, next_sentence_logits = self.logits(
            input_ids, attention_mask, token_type_ids, masked_lm_positions
        )
        labels_n = masked_lm_labels.reshape(-1)
        mlm_loss = mean_cross_entropy(masked_lm_logits, labels_n)
        nsp_loss = mean_cross_entropy(next_sentence_logits, next_sentence_labels)
        return (
            mlm_loss + nsp_loss,
            mlm_loss,
            nsp_loss,
            *correct_and_count(masked_lm_logits, labels_n),
            *correct_and_count(next_sentence_logits, next_sentence_labels),
        )

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, masked_lm_positions: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """The inputs of `forward` without labels -> masked LM logits [B * M, V], next sentence logits [B,
        2]."""
        x_bsh = self.encoder(input_ids, attention_mask, token_type_ids)
        return self.heads(x_bsh, masked_lm_positions, self.encoder.embeddings.word.weight)
