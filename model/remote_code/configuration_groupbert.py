"""The configuration of a GroupBERT, or of an encoder between it and BERT, for `transformers`, loaded from a
model's folder with trust_remote_code.

This file and modeling_groupbert.py are copied beside each saved GroupBERT. They need `transformers` (4.46 or
newer) and `torch`, and nothing else.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class GroupBertConfig(PretrainedConfig):  # type: ignore[misc]
    """The encoder's sizes and parts; the defaults are GroupBERT Base's.

    `ffn_groups` is the number of independent matmuls of the second feed-forward projection, `conv_group_size`
    the number of channels per group of the convolution, `conv_kernel_size` its width in tokens. `has_pooler`:
    the saved model has a pooler. Encoders between BERT and GroupBERT have `norm` "post", no `convolution`
    (nor the feed-forward after it), or `feed_forward` "dense" or "grouped" (without the projection).
    """

    model_type = "groupbert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-3,
        ffn_groups: int = 4,
        conv_group_size: int = 16,
        conv_kernel_size: int = 7,
        norm: str = "pre",
        convolution: bool = True,
        feed_forward: str = "grouped_projected",
        has_pooler: bool = True,
        pad_token_id: int = 0,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.ffn_groups = ffn_groups
        self.conv_group_size = conv_group_size
        self.conv_kernel_size = conv_kernel_size
        self.norm = norm
        self.convolution = convolution
        self.feed_forward = feed_forward
        self.has_pooler = has_pooler
        # A BERT's layers aren't a GroupBERT's: BertModel would draw random weights for those that it misses.
        # A negative standard deviation makes that an error. GroupBertPreTrainedModel doesn't read it.
        self.initializer_range = others.pop("initializer_range", -1.0)
        super().__init__(pad_token_id=pad_token_id, **others)
