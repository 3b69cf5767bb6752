"""The encoder: embeddings and layers of residual modules, PreNorm or PostNorm."""

from __future__ import annotations

from torch import Tensor, nn

from .attention import Attention, additive_mask
from .config import ModelConfig
from .convolution import Convolution
from .embeddings import Embeddings
from .feed_forward import FeedForward


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
