"""The encoder and its parts: attention, convolution, feed-forward, embeddings, residual layers.

Letters in shapes: B sequences, S tokens, h hidden size, H heads, d = h / H.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig

# Added to the attention scores of padded keys. Low enough that the softmax gives them exactly zero in float32
# and in float16, and high enough that the sum with a score is finite in float16 (largest number 65504).
MASKED_SCORE = -30000.0


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, S], 1 for a real token and 0 for padding -> [B, 1, 1, S] of `dtype`, to be added to scores."""
    return ((1 - attention_mask.to(dtype)) * MASKED_SCORE)[:, None, None, :]


def block_diagonal_mask(sequence_numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """As `additive_mask` for packed rows: integers [B, S], the number of each token's sequence in its row ->
    [B, 1, S, S], 0 where query and key have the same number."""
    same_bss = sequence_numbers.unsqueeze(2) == sequence_numbers.unsqueeze(1)
    return ((1 - same_bss.to(dtype)) * MASKED_SCORE).unsqueeze(1)


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(d) + mask) v for each head, then a projection (Vaswani
    et al. 2017)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_dropout)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.scale = config.head_size**-0.5

    def forward(self, x_bsh: Tensor, mask_b1ss: Tensor) -> Tensor:
        """[B, S, h], `additive_mask` or `block_diagonal_mask` -> [B, S, h].

        Matmuls and a softmax instead of the fused operator: PopTorch can't trace the latter, and on CPUs it
        is 5% faster in float32 but slower by a third or more in bfloat16.
        """
        # Scaling the queries costs S * h multiplications, scaling the scores S * S * H.
        query_bhsd = self._heads(self.query(x_bsh) * self.scale)
        key_bhsd = self._heads(self.key(x_bsh))
        value_bhsd = self._heads(self.value(x_bsh))
        scores_bhss = torch.matmul(query_bhsd, key_bhsd.transpose(2, 3)) + mask_b1ss
        probabilities_bhss = self.dropout(torch.softmax(scores_bhss, dim=-1))
        context_bhsd = torch.matmul(probabilities_bhss, value_bhsd)
        out_bsh: Tensor = self.output(context_bhsd.transpose(1, 2).reshape(x_bsh.shape))
        return out_bsh

    def _heads(self, x_bsh: Tensor) -> Tensor:
        batch, tokens, hidden = x_bsh.shape
        return x_bsh.view(batch, tokens, self.num_heads, hidden // self.num_heads).transpose(1, 2)


class GroupedConvolution(nn.Module):
    """nn.Conv1d(in_channels, out_channels, kernel_size, groups=groups, padding="same") for [B, S, channels].

    Output channels [j * out / groups, (j + 1) * out / groups) depend only on input channels [j * in / groups,
    ...). With a kernel of one token it is a grouped matmul.

    It has the parameters of the equivalent nn.Conv1d, but computes with conv2d on a view of [B, S, channels]
    as a channels-last image of height 1 and width S. This needs no transposition, and on CPUs is 1.8 to 5
    times as fast, depending on size and dtype, as nn.Conv1d between two transpositions.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, kernel_size: int = 1) -> None:
        super().__init__()
        assert in_channels % groups == 0 and out_channels % groups == 0 and kernel_size % 2 == 1
        self.groups = groups
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels // groups, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x_bsc: Tensor) -> Tensor:
        """[B, S, in_channels] -> [B, S, out_channels], with zero padding at both ends of a sequence."""
        image_bc1s = x_bsc.unsqueeze(1).permute(0, 3, 1, 2)
        convolved_bc1s = F.conv2d(
            image_bc1s, self.weight.unsqueeze(2), self.bias, padding=(0, self.padding), groups=self.groups
        )
        return convolved_bc1s.permute(0, 2, 3, 1).squeeze(1)


class Convolution(nn.Module):
    """GroupBERT's convolution module: gated linear unit, mask of the padding, grouped convolution, LayerNorm,
    SiLU, projection (Chelombiev et al. 2021, arXiv 2106.05822).

    Padded tokens are zeroed before the convolution; otherwise they would influence real tokens near the end
    of a sequence. Values and gates are two linear layers. The convolution has a bias, as in optimum-graphcore
    (the TensorFlow original had none).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.values = nn.Linear(hidden, hidden)
        self.gates = nn.Linear(hidden, hidden)
        self.convolution = GroupedConvolution(
            hidden, hidden, groups=hidden // config.conv_group_size, kernel_size=config.conv_kernel_size
        )
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.output = nn.Linear(hidden, hidden)

    def forward(self, x_bsh: Tensor, real_bs1: Tensor) -> Tensor:
        """[B, S, h], [B, S, 1] of the same dtype (1 real token, 0 padding) -> [B, S, h]."""
        gated_bsh = self.values(x_bsh) * torch.sigmoid(self.gates(x_bsh)) * real_bs1
        out_bsh: Tensor = self.output(F.silu(self.norm(self.convolution(gated_bsh))))
        return out_bsh


class FeedForward(nn.Module):
    """h -> 4h (or another inner size), GELU (with erf; an IPU computes the tanh form), 4h -> h.

    In the grouped variants 4h -> h is `ffn_groups` independent matmuls; in "grouped_projected" a dense h -> h
    mixes the groups (Chelombiev et al. 2021, arXiv 2106.05822).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.inner_size
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
        """[B, S, h] -> [B, S, h], each token independently."""
        out_bsh: Tensor = self.projection(self.contraction(F.gelu(self.expansion(x_bsh))))
        return out_bsh


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, then LayerNorm, then dropout.

    PreNorm models have this LayerNorm too, as in both published implementations of GroupBERT.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # As in transformers' BERT, the embedding of [PAD] (token 0) gets no gradient as an input.
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Optional[Tensor] = None
    ) -> Tensor:
        """int32 or int64 [B, S] two or three times -> [B, S, h]; positions are 0 to S - 1 unless given.
        Raises ValueError if S has no position embedding."""
        if position_ids is not None:
            return self._normed(input_ids, token_type_ids, self.position(position_ids))
        sequence_length = input_ids.shape[1]
        # A tracer's lengths aren't ints that Python can compare.
        if isinstance(sequence_length, int) and sequence_length > self.position.num_embeddings:
            raise ValueError(
                f"a sequence has {sequence_length} tokens, but the model has only "
                f"{self.position.num_embeddings} position embeddings: shorten the sequences or raise "
                "max_position_embeddings"
            )
        return self._normed(input_ids, token_type_ids, self.position.weight[:sequence_length])

    def _normed(self, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor) -> Tensor:
        x_bsh: Tensor = self.word(input_ids) + self.token_type(token_type_ids) + positions
        x_bsh = self.dropout(self.norm(x_bsh))
        return x_bsh


class Residual(nn.Module):
    """A module with its LayerNorm, dropout and skip connection:
    PreNorm `x + dropout(f(LN(x)))`, PostNorm `LN(x + dropout(f(x)))`."""

    def __init__(self, body: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.body = body
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x_bsh: Tensor, *mask: Tensor) -> Tensor:
        """[B, S, h] and the body's mask, if it has one -> [B, S, h]."""
        out_bsh: Tensor
        if self.pre_norm:
            out_bsh = x_bsh + self.dropout(self.body(self.norm(x_bsh), *mask))
        else:
            out_bsh = self.norm(x_bsh + self.dropout(self.body(x_bsh, *mask)))
        return out_bsh


class EncoderLayer(nn.Module):
    """Attention and feed-forward; with a convolution: convolution, feed-forward, attention, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.has_convolution = config.convolution
        if config.convolution:
            self.convolution = Residual(Convolution(config), config)
            self.first_feed_forward = Residual(FeedForward(config), config)
        self.attention = Residual(Attention(config), config)
        self.feed_forward = Residual(FeedForward(config), config)

    @property
    def second_half(self) -> Residual:
        """The first module on the second IPU if the layer is split over two: the attention in a layer with a
        convolution, otherwise the feed-forward."""
        return self.attention if self.has_convolution else self.feed_forward

    def forward(self, x_bsh: Tensor, real_bs1: Tensor, mask_b1ss: Tensor) -> Tensor:
        """[B, S, h], the 0/1 mask [B, S, 1], the additive mask [B, 1, 1 or S, S] -> [B, S, h]."""
        if self.has_convolution:
            x_bsh = self.first_feed_forward(self.convolution(x_bsh, real_bs1))
        x_bsh = self.feed_forward(self.attention(x_bsh, mask_b1ss))
        return x_bsh


class Encoder(nn.Module):
    """Embeddings, layers and, in PreNorm models, one LayerNorm after the last layer.

    The tokens at padded positions don't affect the outputs at other positions.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.norm: nn.Module
        if config.norm == "pre":
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        else:
            self.norm = nn.Identity()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
    ) -> Tensor:
        """Integers [B, S], [B, S] (1 real, 0 padding; default 1), [B, S] (default 0) -> [B, S, h].

        With `position_ids`, integers [B, S], rows are packed: a token's position is the one in its sequence,
        and `attention_mask` has the number of its sequence in the row, from 1 on; 0 is padding. In a model
        with a convolution, sequences must be separated by conv_kernel_size // 2 tokens of padding, which the
        convolution sees as zeros, as it does beyond the ends of a row.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        # The embeddings must come first: they begin the first pipeline block, and no operator may precede it.
        if position_ids is None:
            x_bsh = self.embeddings(input_ids, token_type_ids)
            real_bs1 = attention_mask.to(x_bsh.dtype).unsqueeze(-1)
            mask_b1ss = additive_mask(attention_mask, x_bsh.dtype)
        else:
            x_bsh = self.embeddings(input_ids, token_type_ids, position_ids)
            real_bs1 = (attention_mask > 0).to(x_bsh.dtype).unsqueeze(-1)
            mask_b1ss = block_diagonal_mask(attention_mask, x_bsh.dtype)
        for layer in self.layers:
            x_bsh = layer(x_bsh, real_bs1, mask_b1ss)
        out_bsh: Tensor = self.norm(x_bsh)
        return out_bsh
