"""What an encoder starts from: a vector for each token."""

from __future__ import annotations

from torch import Tensor, nn

from .config import ModelConfig


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, then LayerNorm, then dropout.

    The LayerNorm stays in PreNorm models too, as in both of GroupBERT's published implementations.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # As in transformers' BERT, [PAD] (token 0) learns nothing as an input.
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """int32 or int64 [B, S] twice -> [B, S, h]. Raises ValueError if S has no position embedding."""
        sequence_length = input_ids.shape[1]
        # A tracer's lengths aren't plain numbers that Python may compare.
        if isinstance(sequence_length, int) and sequence_length > self.position.num_embeddings:
            raise ValueError(
                f"a sequence has {sequence_length} tokens, but the model has position embeddings for "
                f"{self.position.num_embeddings} only: shorten the sequences or raise max_position_embeddings"
            )
        positions = self.position.weight[:sequence_length]
        return self.dropout(self.norm(self.word(input_ids) + self.token_type(token_type_ids) + positions))
