"""GroupBERT (Chelombiev et al. 2021, arXiv 2106.05822) for `transformers`, loaded with trust_remote_code.

    AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)

PreNorm layers of four modules: convolution, grouped feed-forward, attention, grouped feed-forward. Parameters
have the names of optimum-graphcore's GroupBERT. Padded tokens are zeroed before the convolution. Encoders
between BERT and GroupBERT lack some of this: the configuration says what.

Letters in shapes: B sequences, S tokens, h hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from .configuration_groupbert import GroupBertConfig

# Added to the attention scores of padded keys: their softmax is zero in float32 and float16.
MASKED_SCORE = -30000.0
STANDARD_DEVIATION = 0.02  # of new weights, truncated at two standard deviations


def _gelu(x: Tensor, config: GroupBertConfig) -> Tensor:
    return F.gelu(x, approximate="none" if config.hidden_act == "gelu" else "tanh")


def _norm(config: GroupBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _before(norm: nn.Module, x_bsh: Tensor, config: GroupBertConfig) -> Tensor:
    """A module's input: normalised in PreNorm models."""
    out_bsh: Tensor = norm(x_bsh) if config.norm == "pre" else x_bsh
    return out_bsh


def _after(norm: nn.Module, x_bsh: Tensor, config: GroupBertConfig) -> Tensor:
    """The sum of a module's input and output: normalised in PostNorm models."""
    out_bsh: Tensor = x_bsh if config.norm == "pre" else norm(x_bsh)
    return out_bsh


class GroupedConvolution(nn.Module):
    """nn.Conv1d with groups and zero padding, for [B, S, channels]; with a kernel of 1 a grouped matmul."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.groups, self.padding = groups, kernel_size // 2
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels // groups, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x_bsc: Tensor) -> Tensor:
        x_bc1s = x_bsc.unsqueeze(1).permute(0, 3, 1, 2)
        weight = self.weight.unsqueeze(2)
        x_bc1s = F.conv2d(x_bc1s, weight, self.bias, padding=(0, self.padding), groups=self.groups)
        return x_bc1s.permute(0, 2, 3, 1).squeeze(1)


class GroupBertEmbeddings(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = _norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words_bsh: Tensor, token_type_ids: Tensor) -> Tensor:
        tokens = words_bsh.shape[1]
        if tokens > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"a sequence has {tokens} tokens, but the model has only "
                f"{self.position_embeddings.num_embeddings} position embeddings: truncate it"
            )
        positions = self.position_embeddings.weight[:tokens]
        x_bsh = words_bsh + self.token_type_embeddings(token_type_ids) + positions
        out_bsh: Tensor = self.dropout(self.LayerNorm(x_bsh))
        return out_bsh


class GroupBertConvolution(nn.Module):
    """Gated linear unit (gates in the first half of its rows), mask, convolution, norm, SiLU, projection."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.prenorm = _norm(config)
        self.glu = nn.Linear(size, 2 * size)
        self.groupconv = GroupedConvolution(
            size, size, size // config.conv_group_size, config.conv_kernel_size
        )
        self.conv_norm = _norm(config)
        self.output_projection = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_bsh: Tensor, real_bs1: Tensor) -> Tensor:
        normed_bsh = _before(self.prenorm, x_bsh, self.config)
        (gates, values), (gates_bias, values_bias) = self.glu.weight.chunk(2), self.glu.bias.chunk(2)
        gated_bsh = F.linear(normed_bsh, values, values_bias)
        gated_bsh = gated_bsh * torch.sigmoid(F.linear(normed_bsh, gates, gates_bias)) * real_bs1
        convolved_bsh = F.silu(self.conv_norm(self.groupconv(gated_bsh)))
        x_bsh = x_bsh + self.dropout(self.output_projection(convolved_bsh))
        return _after(self.prenorm, x_bsh, self.config)


class GroupBertIntermediate(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.config = config
        self.LayerNorm = _norm(config)
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x_bsh: Tensor) -> Tensor:
        return _gelu(self.dense(_before(self.LayerNorm, x_bsh, self.config)), self.config)


class GroupBertOutput(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.grouped_matmul: nn.Module = nn.Linear(config.intermediate_size, size)
        if config.feed_forward != "dense":
            self.grouped_matmul = GroupedConvolution(config.intermediate_size, size, config.ffn_groups)
        self.dense_output_projection: nn.Module = nn.Identity()
        if config.feed_forward == "grouped_projected":
            self.dense_output_projection = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner_bsi: Tensor, x_bsh: Tensor) -> Tensor:
        out_bsh: Tensor = x_bsh + self.dropout(self.dense_output_projection(self.grouped_matmul(inner_bsi)))
        return out_bsh


class GroupBertSelfAttention(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.scale = (size // self.num_heads) ** -0.5

    def forward(self, x_bsh: Tensor, mask_b11s: Tensor) -> Tuple[Tensor, Tensor]:
        query, key, value = (
            projection.view(*x_bsh.shape[:2], self.num_heads, -1).transpose(1, 2)
            for projection in (self.query(x_bsh) * self.scale, self.key(x_bsh), self.value(x_bsh))
        )
        probabilities = torch.softmax(torch.matmul(query, key.transpose(2, 3)) + mask_b11s, dim=-1)
        context = torch.matmul(self.dropout(probabilities), value)
        return context.transpose(1, 2).reshape(x_bsh.shape), probabilities


class GroupBertSelfOutput(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context_bsh: Tensor, x_bsh: Tensor) -> Tensor:
        out_bsh: Tensor = x_bsh + self.dropout(self.dense(context_bsh))
        return out_bsh


class GroupBertAttention(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.config = config
        self.LayerNorm = _norm(config)
        self.self = GroupBertSelfAttention(config)
        self.output = GroupBertSelfOutput(config)

    def forward(self, x_bsh: Tensor, mask_b11s: Tensor) -> Tuple[Tensor, Tensor]:
        context_bsh, probabilities = self.self(_before(self.LayerNorm, x_bsh, self.config), mask_b11s)
        return _after(self.LayerNorm, self.output(context_bsh, x_bsh), self.config), probabilities


class GroupBertLayer(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.config = config
        if config.convolution:
            self.convolution = GroupBertConvolution(config)
            self.intermediate_first = GroupBertIntermediate(config)
            self.output_first = GroupBertOutput(config)
        self.attention = GroupBertAttention(config)
        self.intermediate_second = GroupBertIntermediate(config)
        self.output_second = GroupBertOutput(config)

    def forward(self, x_bsh: Tensor, real_bs1: Tensor, mask_b11s: Tensor) -> Tuple[Tensor, Tensor]:
        if self.config.convolution:
            x_bsh = self.convolution(x_bsh, real_bs1)
            x_bsh = self.output_first(self.intermediate_first(x_bsh), x_bsh)
            x_bsh = _after(self.intermediate_first.LayerNorm, x_bsh, self.config)
        x_bsh, probabilities = self.attention(x_bsh, mask_b11s)
        x_bsh = self.output_second(self.intermediate_second(x_bsh), x_bsh)
        return _after(self.intermediate_second.LayerNorm, x_bsh, self.config), probabilities


class GroupBertEncoder(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(GroupBertLayer(config) for _ in range(config.num_hidden_layers))
        self.LayerNorm: nn.Module = _norm(config) if config.norm == "pre" else nn.Identity()


class GroupBertPooler(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_bsh: Tensor) -> Tensor:
        return torch.tanh(self.dense(x_bsh[:, 0]))


class GroupBertPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    config_class = GroupBertConfig
    base_model_prefix = "bert"

    def _init_weights(self, module: nn.Module) -> None:
        """For the weights that a file lacks, such as a new head: as at the start of pretraining."""
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Embedding, GroupedConvolution)):
            cut = 2 * STANDARD_DEVIATION
            nn.init.trunc_normal_(module.weight, std=STANDARD_DEVIATION, a=-cut, b=cut)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, GroupBertPredictions):
            nn.init.zeros_(module.bias)


class GroupBertModel(GroupBertPreTrainedModel):
    """The encoder, with the pooler if the file has one."""

    def __init__(self, config: GroupBertConfig, add_pooling_layer: Optional[bool] = None) -> None:
        super().__init__(config)
        self.embeddings = GroupBertEmbeddings(config)
        self.encoder = GroupBertEncoder(config)
        has_pooler = config.has_pooler if add_pooling_layer is None else add_pooling_layer
        self.pooler = GroupBertPooler(config) if has_pooler else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
    ) -> Any:
        """Integers [B, S] three times (or embeddings [B, S, h] instead of the first) -> hidden states [B, S,
        h] and the pooled first token [B, h], or None without a pooler."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        words_bsh = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = torch.ones(words_bsh.shape[:2], device=words_bsh.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros(words_bsh.shape[:2], dtype=torch.long, device=words_bsh.device)
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        x_bsh = self.embeddings(words_bsh, token_type_ids)
        real_bs1 = attention_mask.to(x_bsh.dtype).unsqueeze(-1)
        mask_b11s = ((1 - attention_mask.to(x_bsh.dtype)) * MASKED_SCORE)[:, None, None, :]
        every_x, every_attention = [x_bsh], []
        for layer in self.encoder.layer:
            x_bsh, probabilities = layer(x_bsh, real_bs1, mask_b11s)
            every_x.append(x_bsh)
            every_attention.append(probabilities)
        x_bsh = self.encoder.LayerNorm(x_bsh)
        every_x[-1] = x_bsh
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=x_bsh,
            pooler_output=None if self.pooler is None else self.pooler(x_bsh),
            hidden_states=tuple(every_x) if states else None,
            attentions=tuple(every_attention) if attentions else None,
        )
        return outputs if _as_dictionary(self.config, return_dict) else outputs.to_tuple()


def _as_dictionary(config: GroupBertConfig, return_dict: Optional[bool]) -> bool:
    return bool(getattr(config, "return_dict", True) if return_dict is None else return_dict)


class GroupBertTransform(nn.Module):
    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = _norm(config)

    def forward(self, x_bsh: Tensor) -> Tensor:
        out_bsh: Tensor = self.LayerNorm(_gelu(self.dense(x_bsh), self.config))
        return out_bsh


class GroupBertPredictions(nn.Module):
    """Logits by the word embeddings, which are not a parameter of this module, and a bias."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__()
        self.transform = GroupBertTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_bsh: Tensor, words_vh: Tensor) -> Tensor:
        return F.linear(self.transform(x_bsh), words_vh, self.bias)


class GroupBertHeads(nn.Module):
    def __init__(self, config: GroupBertConfig, next_sentence: bool) -> None:
        super().__init__()
        self.predictions = GroupBertPredictions(config)
        if next_sentence:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


class _WithModel(GroupBertPreTrainedModel):
    """A model of a task: `run` gives the encoder's outputs, `end` returns the task's."""

    bert: GroupBertModel

    def run(self, inputs: Tuple[Any, ...]) -> BaseModelOutputWithPooling:
        outputs: BaseModelOutputWithPooling = self.bert(*inputs, return_dict=True)
        return outputs

    def end(self, outputs: Any, return_dict: Optional[bool]) -> Any:
        return outputs if _as_dictionary(self.config, return_dict) else outputs.to_tuple()

    def word_logits(self, heads: GroupBertHeads, x_bsh: Tensor) -> Tensor:
        logits_bsv: Tensor = heads.predictions(x_bsh, self.bert.embeddings.word_embeddings.weight)
        return logits_bsv


def _cross_entropy(logits: Tensor, labels: Optional[Tensor]) -> Optional[Tensor]:
    if labels is None:
        return None
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


class GroupBertForPreTraining(_WithModel):
    """Masked language modelling and next sentence prediction."""

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__(config)
        self.bert = GroupBertModel(config, add_pooling_layer=True)
        self.cls = GroupBertHeads(config, next_sentence=True)
        self.post_init()

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        next_sentence_label: Optional[Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
    ) -> Any:
        """Labels [B, S], -100 where there is none, and [B] -> logits [B, S, V] and [B, 2]."""
        flags = (output_attentions, output_hidden_states)
        encoded = self.run((input_ids, attention_mask, token_type_ids, inputs_embeds, *flags))
        words = self.word_logits(self.cls, encoded.last_hidden_state)
        sentences = self.cls.seq_relationship(encoded.pooler_output)
        losses = (_cross_entropy(words, labels), _cross_entropy(sentences, next_sentence_label))
        given = [loss for loss in losses if loss is not None]
        outputs = BertForPreTrainingOutput(
            loss=sum(given[1:], given[0]) if given else None,
            prediction_logits=words,
            seq_relationship_logits=sentences,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self.end(outputs, return_dict)


class GroupBertForMaskedLM(_WithModel):
    _keys_to_ignore_on_load_unexpected = ["bert.pooler", "cls.seq_relationship"]  # noqa: RUF012

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__(config)
        self.bert = GroupBertModel(config, add_pooling_layer=False)
        self.cls = GroupBertHeads(config, next_sentence=False)
        self.post_init()

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
    ) -> Any:
        """Labels [B, S], -100 where there is none -> logits [B, S, V]."""
        flags = (output_attentions, output_hidden_states)
        encoded = self.run((input_ids, attention_mask, token_type_ids, inputs_embeds, *flags))
        logits = self.word_logits(self.cls, encoded.last_hidden_state)
        outputs = MaskedLMOutput(
            loss=_cross_entropy(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self.end(outputs, return_dict)


class GroupBertForQuestionAnswering(_WithModel):
    _keys_to_ignore_on_load_unexpected = ["bert.pooler", "cls"]  # noqa: RUF012

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__(config)
        self.bert = GroupBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        start_positions: Optional[Tensor] = None,
        end_positions: Optional[Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
    ) -> Any:
        """Positions [B] twice; those outside of [0, S) count for nothing -> logits [B, S] twice."""
        flags = (output_attentions, output_hidden_states)
        encoded = self.run((input_ids, attention_mask, token_type_ids, inputs_embeds, *flags))
        logits = self.qa_outputs(encoded.last_hidden_state)
        starts, ends = logits[..., 0], logits[..., 1]
        loss = None
        if start_positions is not None and end_positions is not None:
            tokens = starts.shape[1]
            halves = []
            for scores, positions in ((starts, start_positions), (ends, end_positions)):
                positions = positions.reshape(-1)
                outside = (positions < 0) | (positions >= tokens)
                halves.append(F.cross_entropy(scores, positions.masked_fill(outside, -100)))
            loss = (halves[0] + halves[1]) / 2
        outputs = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=starts.contiguous(),
            end_logits=ends.contiguous(),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self.end(outputs, return_dict)


class GroupBertForSequenceClassification(_WithModel):
    """One logit per class from the pooler; a regression if the configuration has a single label."""

    _keys_to_ignore_on_load_unexpected = ["cls"]  # noqa: RUF012

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__(config)
        self.bert = GroupBertModel(config, add_pooling_layer=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
    ) -> Any:
        """Labels [B]: classes, or numbers for a regression -> logits [B, labels]."""
        flags = (output_attentions, output_hidden_states)
        encoded = self.run((input_ids, attention_mask, token_type_ids, inputs_embeds, *flags))
        logits = self.classifier(self.dropout(encoded.pooler_output))
        loss = None
        if labels is not None and logits.shape[-1] == 1:
            loss = F.mse_loss(logits.reshape(-1), labels.reshape(-1).to(logits.dtype))
        elif labels is not None:
            loss = _cross_entropy(logits, labels)
        outputs = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return self.end(outputs, return_dict)


class GroupBertForTokenClassification(_WithModel):
    _keys_to_ignore_on_load_unexpected = ["bert.pooler", "cls"]  # noqa: RUF012

    def __init__(self, config: GroupBertConfig) -> None:
        super().__init__(config)
        self.bert = GroupBertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
    ) -> Any:
        """Labels [B, S], -100 where there is none -> logits [B, S, labels]."""
        flags = (output_attentions, output_hidden_states)
        encoded = self.run((input_ids, attention_mask, token_type_ids, inputs_embeds, *flags))
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        outputs = TokenClassifierOutput(
            loss=_cross_entropy(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return self.end(outputs, return_dict)
