"""Question answering as in SQuAD: where in the text an answer starts and ends."""

from __future__ import annotations

from typing import Optional, Tuple

from torch import Tensor, nn

from .config import ModelConfig
from .encoder import Encoder
from .initialisation import initialise
from .losses import IGNORED, mean_cross_entropy


class SquadModel(nn.Module):
    """Encoder and two logits a token (Devlin et al. 2018, section 4.2).

    The weights come from `seed`, or from PyTorch's global generator if there is none.
    """

    def __init__(self, config: ModelConfig, seed: Optional[int] = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.span = nn.Linear(config.hidden_size, 2)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        start_positions: Optional[Tensor] = None,
        end_positions: Optional[Tensor] = None,
    ) -> Tuple[Tensor, ...]:
        """Integers [B, S] three times (and [B] twice) -> start and end logits, [B, S] each; with positions
        the loss, 0-d float32, comes before them.

        The loss is the mean of start and end cross entropy, each a mean over the positions in [0, S).
        Others, -100 among them, are ignored; where all are, the loss is 0.
        """
        logits_bs2 = self.span(self.encoder(input_ids, attention_mask, token_type_ids))
        start_logits_bs, end_logits_bs = logits_bs2[..., 0], logits_bs2[..., 1]
        if start_positions is None or end_positions is None:
            return start_logits_bs, end_logits_bs
        start_loss = _position_loss(start_logits_bs, start_positions)
        end_loss = _position_loss(end_logits_bs, end_positions)
        return (start_loss + end_loss) / 2, start_logits_bs, end_logits_bs


def _position_loss(logits_bs: Tensor, positions_b: Tensor) -> Tensor:
    outside_b = (positions_b < 0) | (positions_b >= logits_bs.shape[1])
    return mean_cross_entropy(logits_bs, positions_b.masked_fill(outside_b, IGNORED))
