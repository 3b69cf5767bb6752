"""The tasks: the head of each, its loss and its placement. TASKS has one entry per task.

Letters in shapes: B sequences, S tokens, M masked positions per sequence, h hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .encoder import Encoder
from .tasks import ClassificationFacts, PretrainingFacts, SquadFacts, TaskFacts


def gather_positions(x_bsh: Tensor, positions_bm: Tensor) -> Tensor:
    """The tokens at `positions_bm`: [B, S, h], integers [B, M] in [0, S) -> [B * M, h]."""
    batch, tokens, hidden = x_bsh.shape
    first_rows_b1 = torch.arange(batch, device=x_bsh.device).unsqueeze(1) * tokens
    rows = (positions_bm.long() + first_rows_b1).view(-1)
    return x_bsh.reshape(batch * tokens, hidden).index_select(0, rows)


def one_hot_positions(x_bsh: Tensor, positions_bm: Tensor) -> Tensor:
    """As `gather_positions`, by a product with one-hot rows [B, M, S], as in Graphcore's BERT.

    Its gradient is a product too; that of a gather adds up rows of [B * S, h].
    """
    tokens_s = torch.arange(x_bsh.shape[1], device=x_bsh.device)
    one_hot_bms = (positions_bm.unsqueeze(2) == tokens_s).to(x_bsh.dtype)
    return torch.matmul(one_hot_bms, x_bsh).flatten(0, 1)


class MaskedLmHead(nn.Module):
    """Dense layer, GELU, LayerNorm, then logits by the tied word embeddings and a bias.

    `serialized_matmul(lhs, rhs)`, if set, replaces the product with the word embeddings: on IPUs it is
    computed in slices of the vocabulary, to save memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.serialized_matmul: Optional[Callable[[Tensor, Tensor], Tensor]] = None

    def forward(self, x_nh: Tensor, word_embeddings_vh: Tensor) -> Tensor:
        """[N, h], [V, h] -> logits [N, V]."""
        x_nh = self.norm(F.gelu(self.transform(x_nh)))
        if self.serialized_matmul is None:
            return F.linear(x_nh, word_embeddings_vh, self.bias)
        return self.serialized_matmul(x_nh, word_embeddings_vh.t()) + self.bias


class PretrainingHeads(nn.Module):
    """Masked language modelling at the masked positions only, and next sentence prediction from the first
    token of each sequence.

    `gather(x_bsh, positions_bm)` picks the masked positions, and in packed rows the first tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gather: Callable[[Tensor, Tensor], Tensor] = gather_positions
        self.masked_lm = MaskedLmHead(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.next_sentence = nn.Linear(config.hidden_size, 2)

    def forward(
        self,
        x_bsh: Tensor,
        masked_lm_positions: Tensor,
        word_embeddings_vh: Tensor,
        first_tokens: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        """[B, S, h], [B, M], [V, h] -> masked LM logits [B * M, V], next sentence logits [B, 2]; with the
        positions of D sequences' first tokens, [B, D], [B * D, 2]."""
        masked_lm_logits = self.masked_lm(self.gather(x_bsh, masked_lm_positions), word_embeddings_vh)
        first_nh = x_bsh[:, 0] if first_tokens is None else self.gather(x_bsh, first_tokens)
        pooled_nh = torch.tanh(self.pooler(first_nh))
        return masked_lm_logits, self.next_sentence(pooled_nh)


IGNORED = -100  # a label that is excluded from loss and counts
NO_NUMBER = -1e30  # the same in a regression; not NaN, on which an IPU can raise an exception


def mean_cross_entropy(logits_nc: Tensor, labels_n: Tensor) -> Tensor:
    """Mean cross entropy over the labels that aren't ignored: [N, classes], integers [N] -> 0-d float32; 0 if
    all are ignored.

    The loss of each label is computed in the model's dtype, so that a float16 model never stores float32
    logits of the whole vocabulary; sum and mean are float32.
    """
    losses_n = F.cross_entropy(logits_nc, labels_n.long(), ignore_index=IGNORED, reduction="none").float()
    return losses_n.sum() / real_labels(labels_n).clamp(min=1.0)


def mean_squared_error(numbers_n: Tensor, labels_n: Tensor) -> Tensor:
    """Mean squared error over the labels that aren't NO_NUMBER: [N], floats [N] -> 0-d float32; 0 if there
    are none."""
    is_real_n = (labels_n > NO_NUMBER / 2).float()
    errors_n = (numbers_n.float() - labels_n.float() * is_real_n) * is_real_n
    return (errors_n * errors_n).sum() / is_real_n.sum().clamp(min=1.0)


def real_labels(labels_n: Tensor) -> Tensor:
    """The number of labels that aren't ignored, 0-d float32."""
    return (labels_n != IGNORED).float().sum()


def correct_and_count(logits_nc: Tensor, labels_n: Tensor) -> Tuple[Tensor, Tensor]:
    """The numbers of correct predictions and of labels that aren't ignored, 0-d float32 each."""
    # An ignored label equals no class. (argmax has no gradient; a detach would copy the logits on an IPU.)
    correct_n = logits_nc.argmax(dim=-1) == labels_n
    return correct_n.float().sum(), real_labels(labels_n)


STANDARD_DEVIATION = 0.02
CUT = 2.0  # in standard deviations


def initialise(model: nn.Module, seed: Optional[int] = None) -> None:
    """Initialises every parameter of `model`: LayerNorm weights with 1, biases with 0, all others from a
    normal distribution with standard deviation 0.02, truncated at two standard deviations (Devlin et al.
    2018; their code's `truncated_normal_initializer`). No parameter keeps PyTorch's default.

    With a `seed` the weights depend only on it; without one they come from PyTorch's global generator.
    Parameters on the meta device are skipped.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                continue
            if name == "bias":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(parameter)
            else:
                _truncated_normal_(parameter, generator)


@torch.no_grad()
def _truncated_normal_(tensor: torch.Tensor, generator: Optional[torch.Generator]) -> None:
    """Inverse transform sampling, as torch.nn.init.trunc_normal_, which takes no generator in torch 2.0."""
    bound = math.erf(CUT / math.sqrt(2.0))
    tensor.uniform_(-bound, bound, generator=generator)
    tensor.erfinv_().mul_(STANDARD_DEVIATION * math.sqrt(2.0))
    # Rounding can put a weight beyond the cut.
    tensor.clamp_(-CUT * STANDARD_DEVIATION, CUT * STANDARD_DEVIATION)


class TaskModel(nn.Module, TaskFacts):
    """An encoder and the head of a task. Each subclass is its task's entry in TASKS.

    `forward` takes a micro batch, in training integers in the shapes of `inputs`, and returns the loss first,
    0-d; without labels it omits the loss, so `model(**tokenizer(...))` gives outputs. The encoder must run
    first. The head's parameters belong to the attributes `head_modules`. A subclass's `__init__` ends with
    `initialise(self, seed)`.
    """

    def __init__(self, config: ModelConfig, seed: Optional[int] = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.fresh_modules: Tuple[str, ...] = ()  # those that the file it was loaded from didn't have

    @classmethod
    def build(cls, config: ModelConfig, *, seed: Optional[int], labels: Sequence[str]) -> TaskModel:
        """A model for `labels`, the names of the classes, if the task has any."""
        assert not labels, f"{cls.task} has no classes"
        return cls(config, seed=seed)

    @property
    def parts_of_head(self) -> Tuple[str, ...]:
        """The names of the head's modules that a file may lack, each as a whole."""
        names = []
        for name in self.head_modules:
            module: nn.Module = getattr(self, name)
            has_parts = not list(module.parameters(recurse=False))
            names += [f"{name}.{part}" for part, _ in module.named_children()] if has_parts else [name]
        return tuple(names)

    def file_settings(self) -> Dict[str, object]:
        """The task's settings in config.json, in transformers' names."""
        return {}

    @property
    def head(self) -> nn.Module:
        """The module at which the head's block begins."""
        head: nn.Module = getattr(self, self.head_modules[0])
        return head

    @property
    def vocabulary_projection(self) -> Optional[MaskedLmHead]:
        """The part of the head that can be serialised, or None."""
        return None

    @staticmethod
    def head_flops(config: ModelConfig, sequence_length: int, masked_tokens: int) -> int:
        """Forward FLOPs of the head for one sequence."""
        raise NotImplementedError


# The outputs of `PretrainingModel.forward`, in order. Counts are floats, to be summed over replicas like the
# losses.
PRETRAINING_OUTPUTS = (
    "loss",
    "mlm_loss",
    "nsp_loss",
    "mlm_correct",
    "mlm_count",
    "nsp_correct",
    "nsp_count",
)


class PretrainingModel(TaskModel, PretrainingFacts):
    """Masked language modelling plus next sentence prediction (Devlin et al. 2018).

    The weights come from `seed`, or from PyTorch's global generator if there is none.
    """

    def __init__(self, config: ModelConfig, seed: Optional[int] = None) -> None:
        super().__init__(config)
        self.heads = PretrainingHeads(config)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        masked_lm_positions: Optional[Tensor] = None,
        masked_lm_labels: Optional[Tensor] = None,
        next_sentence_labels: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        next_sentence_positions: Optional[Tensor] = None,
    ) -> Tuple[Tensor, ...]:
        """Integers [B, S], [B, S] (1 real, 0 padding), [B, S], [B, M], [B, M] and [B] ->
        PRETRAINING_OUTPUTS, each a 0-d float32.

        Labels of -100 are ignored. A next sentence label is 1 if the second sentence is a random one, 0 if it
        continues the first. Losses are means over this batch's labels that aren't ignored, or 0 if there are
        none; loss = mlm_loss + nsp_loss.

        Packed rows, of up to D sequences, have `next_sentence_labels` [B, D], `position_ids` [B, S] and
        `next_sentence_positions` [B, D], where the sequences begin; see Encoder.

        Without labels: the masked LM logits [B, M, V], or [B, S, V] without positions, and the next sentence
        logits [B, 2]. By default no token is padding, and all are of the first sentence.
        """
        if masked_lm_labels is None or next_sentence_labels is None or masked_lm_positions is None:
            x_bsh = self.encoder(input_ids, attention_mask, token_type_ids)
            heads, words_vh = self.heads, self.encoder.embeddings.word.weight
            picked_bmh = x_bsh
            if masked_lm_positions is not None:
                picked_bmh = heads.gather(x_bsh, masked_lm_positions).view(len(x_bsh), -1, x_bsh.shape[-1])
            words_nv = heads.masked_lm(picked_bmh.flatten(0, 1), words_vh)
            words_bmv = words_nv.view(*picked_bmh.shape[:2], -1)
            return words_bmv, heads.next_sentence(torch.tanh(heads.pooler(x_bsh[:, 0])))
        masked_lm_logits, next_sentence_logits = self.logits(
            input_ids,
            attention_mask,
            token_type_ids,
            masked_lm_positions,
            position_ids,
            next_sentence_positions,
        )
        labels_n = masked_lm_labels.reshape(-1)
        if next_sentence_positions is not None:
            next_sentence_labels = next_sentence_labels.reshape(-1)
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
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor],
        token_type_ids: Optional[Tensor],
        masked_lm_positions: Tensor,
        position_ids: Optional[Tensor] = None,
        next_sentence_positions: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        """The inputs of `forward` without labels -> masked LM logits [B * M, V], next sentence logits [B, 2]
        or [B * D, 2]."""
        x_bsh = self.encoder(input_ids, attention_mask, token_type_ids, position_ids)
        logits: Tuple[Tensor, Tensor] = self.heads(
            x_bsh, masked_lm_positions, self.encoder.embeddings.word.weight, next_sentence_positions
        )
        return logits

    @property
    def vocabulary_projection(self) -> MaskedLmHead:
        return self.heads.masked_lm

    @staticmethod
    def head_flops(config: ModelConfig, sequence_length: int, masked_tokens: int) -> int:
        """Dense layer and vocabulary projection, 2 M (h^2 + h V); pooler, 2 h^2; next sentence, 4 h."""
        hidden = config.hidden_size
        masked_lm = 2 * masked_tokens * (hidden**2 + hidden * config.vocab_size)
        return masked_lm + 2 * hidden**2 + 2 * hidden * 2


class SquadModel(TaskModel, SquadFacts):
    """Extractive question answering: start and end logits for each token (Devlin et al. 2018, section 4.2).

    The weights come from `seed`, or from PyTorch's global generator if there is none.
    """

    def __init__(self, config: ModelConfig, seed: Optional[int] = None) -> None:
        super().__init__(config)
        self.span = nn.Linear(config.hidden_size, 2)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        start_positions: Optional[Tensor] = None,
        end_positions: Optional[Tensor] = None,
    ) -> Tuple[Tensor, ...]:
        """Integers [B, S] three times (and [B] twice) -> start and end logits, [B, S] each; with positions,
        the loss first, 0-d float32.

        The loss is the mean of start and end cross entropy, each a mean over the positions in [0, S). Other
        positions, such as -100, are ignored; if all are, the loss is 0.
        """
        logits_bs2 = self.span(self.encoder(input_ids, attention_mask, token_type_ids))
        start_logits_bs, end_logits_bs = logits_bs2[..., 0], logits_bs2[..., 1]
        if start_positions is None or end_positions is None:
            return start_logits_bs, end_logits_bs
        start_loss = _position_loss(start_logits_bs, start_positions)
        end_loss = _position_loss(end_logits_bs, end_positions)
        return (start_loss + end_loss) / 2, start_logits_bs, end_logits_bs

    @staticmethod
    def head_flops(config: ModelConfig, sequence_length: int, masked_tokens: int) -> int:
        """Two logits per token, 4 S h."""
        return 2 * sequence_length * config.hidden_size * 2


def _position_loss(logits_bs: Tensor, positions_b: Tensor) -> Tensor:
    outside_b = (positions_b < 0) | (positions_b >= logits_bs.shape[1])
    return mean_cross_entropy(logits_bs, positions_b.masked_fill(outside_b, IGNORED))


class ClassificationModel(TaskModel, ClassificationFacts):
    """Classification of a sequence or a pair, from the first token: pooler, dropout and one logit per class
    (Devlin et al. 2018, section 4.1). With a single class it is a regression: labels are numbers.

    `labels` are the names of the classes, by default LABEL_0, ...; `num_classes` counts for less. The weights
    come from `seed`, or from PyTorch's global generator if there is none.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int = 2,
        seed: Optional[int] = None,
        *,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__(config)
        self.labels = tuple(labels) or tuple(f"LABEL_{number}" for number in range(num_classes))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classes = nn.Linear(config.hidden_size, len(self.labels))
        initialise(self, seed)

    @classmethod
    def build(cls, config: ModelConfig, *, seed: Optional[int], labels: Sequence[str]) -> TaskModel:
        return cls(config, seed=seed, labels=labels)

    @property
    def is_regression(self) -> bool:
        return len(self.labels) == 1

    def file_settings(self) -> Dict[str, object]:
        return {
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            "problem_type": "regression" if self.is_regression else "single_label_classification",
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor] = None,
        token_type_ids: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
    ) -> Tuple[Tensor, ...]:
        """Integers [B, S] three times (and [B]) -> logits [B, classes]; with labels, the loss first, 0-d
        float32: the mean cross entropy over labels that aren't -100. In a regression labels are float32, and
        the loss is the mean squared error over those that aren't NO_NUMBER."""
        x_bsh = self.encoder(input_ids, attention_mask, token_type_ids)
        logits_bc = self.classes(self.dropout(torch.tanh(self.pooler(x_bsh[:, 0]))))
        if labels is None:
            return (logits_bc,)
        if self.is_regression:
            return mean_squared_error(logits_bc[:, 0], labels), logits_bc
        return mean_cross_entropy(logits_bc, labels), logits_bc

    @staticmethod
    def head_flops(config: ModelConfig, sequence_length: int, masked_tokens: int) -> int:
        """Pooler and two classes, 2 h^2 + 4 h."""
        return 2 * config.hidden_size**2 + 2 * config.hidden_size * 2


TASKS: Dict[str, Type[TaskModel]] = {
    model.task: model for model in (PretrainingModel, SquadModel, ClassificationModel)
}
