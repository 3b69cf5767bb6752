"""The encoder, from its parts up: attention, convolution, feed-forward, embeddings, residual layers.

Letters in shapes: B sequences, S tokens, h hidden size, H heads, d = h / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class GroupedConvolution(nn.Module):
    """nn.Conv1d(in_channels, out_channels, kernel_size, groups=groups, padding="same") for [B, S, channels].

    Output channels [j * out / groups, (j + 1) * out / groups) see input channels [j * in / groups, ...)
    alone. With a kernel of one token it is a grouped matmul.

    It has the parameters of the equal nn.Conv1d, but computes with conv2d on a view of [B, S, channels] as a
    channels-last image of height 1 and width S: no transposition, and on CPUs 1.8 to 5 times as fast, by size
    and dtype, as nn.Conv1d between two transpositions.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, kernel_size: int = 1) -> None:
        super().__init__()
        assert in_channels % groups == 0 and out_channels % groups == 0 and kernel_size % 2 == 1
        self.groups = groups
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels // groups, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x_bsc: Tensor) -> Tensor:
        """[B, S, in_channels] -> [B, S, out_channels]. Beyond either end of a sequence there are zeros."""
        image_bc1s = x_bsc.unsqueeze(1).permute(0, 3, 1, 2)
        convolved_bc1s = F.conv2d(
            image_bc1s, self.weight.unsqueeze(2), self.bias, padding=(0, self.padding), groups=self.groups
        )
        return convolved_bc1s.permute(0, 2, 3, 1).squeeze(1)


class Convolution(nn.Module):
    """GroupBERT's convolution module: gated linear unit, padding to zero, grouped convolution, LayerNorm,
    SiLU, projection (Chelombiev et al. 2021, arXiv 2106.05822).

    Padded tokens are zeroed before the convolution, else real tokens near the end of a sequence would see
    them. Values and gates are two linear layers. The convolution has a bias, as in optimum-graphcore (the
    TensorFlow original had none).
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
        return self.output(F.silu(self.norm(self.convolution(gated_bsh))))


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
        """[B, S, h] and the mask that the body takes, if any -> [B, S, h]."""
        if self.pre_norm:
            return x_bsh + self.dropout(self.body(self.norm(x_bsh), *mask))
        return self.norm(x_bsh + self.dropout(self.body(x_bsh, *mask)))


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
        """Where a layer that is spread over two IPUs goes over to the second: with a convolution at the
        attention, else behind it."""
        return self.attention if self.has_convolution else self.feed_forward

    def forward(self, x_bsh: Tensor, real_bs1: Tensor, mask_b11s: Tensor) -> Tensor:
        """[B, S, h], the 0/1 mask [B, S, 1], the additive mask [B, 1, 1, S] -> [B, S, h]."""
        if self.has_convolution:
            x_bsh = self.first_feed_forward(self.convolution(x_bsh, real_bs1))
        return self.feed_forward(self.attention(x_bsh, mask_b11s))


class Encoder(nn.Module):
    """Embeddings, layers and, in PreNorm models, one LayerNorm after the last layer.

    What stands at a padded position changes nothing at any other.
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

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Integers [B, S], [B, S] (1 real, 0 padding), [B, S] -> [B, S, h]."""
        # The embeddings come first: they begin the first pipeline block, and no operator may precede it.
        x_bsh = self.embeddings(input_ids, token_type_ids)
        real_bs1 = attention_mask.to(x_bsh.dtype).unsqueeze(-1)
        mask_b11s = additive_mask(attention_mask, x_bsh.dtype)
        for layer in self.layers:
            x_bsh = layer(x_bsh, real_bs1, mask_b11s)
        return self.norm(x_bsh)
