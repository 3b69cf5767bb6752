"""Embeddings of texts: the first token's state and the mean over the real tokens."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ipu.placement import Head

from .config import ModelConfig
from .encoder import Encoder
from .heads import PretrainingHeads, TaskModel


class _Pooling(nn.Module):
    def forward(self, x_bsh: Tensor, attention_mask: Tensor) -> Tuple[Tensor, Tensor]:
        """[B, S, h], [B, S] -> the first token's state and the mean over real tokens, [B, h] float32 both."""
        real_bs1 = attention_mask.float().unsqueeze(-1)
        wide_bsh = x_bsh.float()
        return wide_bsh[:, 0], (wide_bsh * real_bs1).sum(dim=1) / real_bs1.sum(dim=1)


class EmbeddingModel(TaskModel):
    """An encoder without weights of a head. It isn't trained, so it isn't in TASKS."""

    task = "embeddings"
    inputs = ("BS", "BS", "BS")
    place = Head("Embeddings", shares_embeddings=False)
    head_modules = ("pooling",)
    architecture = "Model"

    def __init__(
        self, config: ModelConfig, seed: Optional[int] = None, *, encoder: Optional[Encoder] = None
    ) -> None:
        super().__init__(config)
        if encoder is not None:
            self.encoder = encoder
        self.pooling = _Pooling()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Integers [B, S] three times -> _Pooling's outputs."""
        pooled: Tuple[Tensor, Tensor] = self.pooling(
            self.encoder(input_ids, attention_mask, token_type_ids), attention_mask
        )
        return pooled


class FillMaskModel(TaskModel):
    """A pretraining model's masked language modelling alone: the most likely tokens at some positions.

    `most` is the number of tokens for each position.
    """

    task = "fill-mask"
    inputs = ("BS", "BS", "BS", "BM")
    place = Head("Classifier", shares_embeddings=True)
    head_modules = ("heads",)
    architecture = "MaskedLM"

    def __init__(self, pretrained: TaskModel, most: int) -> None:
        super().__init__(pretrained.config)
        heads = pretrained.head
        assert isinstance(heads, PretrainingHeads)
        self.encoder, self.heads = pretrained.encoder, heads
        self.most = most

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, positions: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Integers [B, S] three times and [B, M] -> probabilities, float32, and token ids, int32: [B, M,
        most] each."""
        x_bsh = self.encoder(input_ids, attention_mask, token_type_ids)
        picked_nh = self.heads.gather(x_bsh, positions)
        logits_nv = self.heads.masked_lm(picked_nh, self.encoder.embeddings.word.weight)
        values, tokens = torch.topk(torch.softmax(logits_nv.float(), dim=-1), self.most, dim=-1)
        shape = (*positions.shape, self.most)
        return values.view(shape), tokens.to(torch.int32).view(shape)
