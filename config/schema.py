"""The keys of a run: each field is a documented key of configs.yml and a command-line flag.

Each declares its type, bounds, default and meaning, and what changing it may alter.
"""

# ruff: noqa: RUF009 (key() makes a dataclasses.field)
from __future__ import annotations

from dataclasses import Field, dataclass, fields
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    FrozenSet,
    List,
    Literal,
    Mapping,
    Optional,
    Tuple,
    Type,
    TypeVar,
    get_type_hints,
)

from data.keys import AnswerKeys, DataKeys, ExampleKeys, most_sequences, published_packing_factor
from ipu.keys import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    REQUIRED,
    BatchKeys,
    DeviceKeys,
    Effect,
    KeyGroup,
    key,
)
from ipu.placement import validation_layers
from model.config import EncoderKeys, FeedForward, ModelConfig, Norm
from model.tasks import FACTS, TaskFacts

from .recipes import ConfigError, Problem, convert, describe, nearest

if TYPE_CHECKING:
    from ipu.placement import Head
    from model import TaskModel

# Keys that may be "auto": `planning.placement` searches for their values, so a Config has only values.
AUTO = "auto"
# An entry of layers_per_ipu: any number of layers.
ANY = -1
AUTO_KEYS = (
    "layers_per_ipu",
    "micro_batch_size",
    "gradient_accumulation",
    "replication_factor",
    "matmul_proportion",
    "optimizer_state",
    "recompute_checkpoint_every_layer",
)

SEEDS = f"[0, {2**63})"  # the seeds that every generator accepts
Family = Literal["bert", "groupbert"]
Optimizer = Literal["sgd", "adam", "adamw", "lamb", "lamb_no_bias_correction"]
Schedule = Literal["constant", "linear", "polynomial"]
Section = TypeVar("Section")


@dataclass(frozen=True)
class RunKeys(KeyGroup):
    """Task, length, logging and checkpoints."""

    task: str = key(
        "weights", "what to train: pretraining, or squad and others in model.TASKS", "pretraining"
    )
    seed: int = key(
        "weights", "seed of all random numbers: data order, masks, initial weights, dropout", 42, SEEDS
    )
    training_steps: int = key(
        "weights", "number of weight updates; 0: derived from epochs (fine-tuning)", 0, AT_LEAST_0
    )
    eval_steps: Optional[int] = key(
        "evaluation",
        "weight updates between evaluations; none: only at the start and at the end",
        None,
        AT_LEAST_1,
    )
    eval_batches: Optional[int] = key(
        "evaluation", "micro batches per evaluation; none: the whole validation set", None, AT_LEAST_1
    )
    checkpoint_steps: Optional[int] = key(
        "nothing", "weight updates between checkpoints; none: only one, at the end", None, AT_LEAST_1
    )
    checkpoints_to_keep: int = key("nothing", "how many of the newest checkpoints to keep", 2, AT_LEAST_1)
    log_steps: int = key("nothing", "weight updates between log lines", 1, AT_LEAST_1)
    report_to: Optional[Literal["wandb", "tensorboard", "all"]] = key(
        "nothing", "where metrics go besides metrics.jsonl: Weights & Biases, TensorBoard, or both", None
    )
    wandb: bool = key("nothing", "older name of report_to wandb, which it adds", False)
    wandb_project: str = key("nothing", "Weights & Biases project", "groupbert-ipu")
    push_to_hub: Optional[str] = key(
        "nothing", "repository of the Hugging Face hub to which a finished run uploads its model", None
    )
    data_timeout_s: int = key(
        "nothing",
        "seconds without a batch, or without prepared text, after which a run saves and ends; 0: never",
        1800,
        AT_LEAST_0,
    )
    progress_bar: bool = key("nothing", "show progress bars", True)


@dataclass(frozen=True)
class FamilyKeys(KeyGroup):
    """The family of the encoder, which sets defaults of its keys."""

    model: Family = key(
        "weights", "model family: sets the defaults of norm, convolution and feed_forward", "groupbert"
    )


@dataclass(frozen=True)
class ValidationKeys(KeyGroup):
    """Batch and placement of evaluations in fine-tuning."""

    validation_micro_batch_size: int = key("evaluation", "micro batch size in evaluation", 20, AT_LEAST_1)
    validation_device_iterations: int = key(
        "evaluation", "micro batches per device call in evaluation", 4, AT_LEAST_1
    )
    validation_matmul_proportion: float = key(
        "evaluation", "proportion of memory available to matmuls in evaluation", 0.25, "[0, 1]"
    )
    validation_layers_per_ipu: Optional[Tuple[int, ...]] = key(
        "evaluation",
        "encoder layers on each IPU in evaluation; none: half of them on each of two IPUs",
        None,
        AT_LEAST_0,
    )
    validation_replication_factor: Optional[int] = key(
        "evaluation",
        "replicas in evaluation; none: as many as fit on training's IPUs",
        None,
        AT_LEAST_1,
    )


@dataclass(frozen=True)
class OptimizerKeys(KeyGroup):
    """Optimizer, learning rate and loss scaling."""

    optimizer: Optimizer = key("weights", "optimizer", "adamw")
    learning_rate: float = key("weights", "peak learning rate", bounds=ABOVE_0)
    lr_schedule: Schedule = key(
        "weights", "after warm-up: constant, linear decay to 0, or polynomial decay to lr_end", "linear"
    )
    lr_warmup: float = key(
        "weights",
        "warm-up: a fraction of training_steps if below 1, otherwise weight updates",
        0.0,
        AT_LEAST_0,
    )
    lr_warmup_power: float = key(
        "weights", "exponent of the warm-up: 1 is linear, 0.5 GroupBERT's square root", 1.0, ABOVE_0
    )
    lr_end: float = key("weights", "final learning rate of the polynomial schedule", 0.0, AT_LEAST_0)
    momentum: float = key("weights", "momentum of sgd", 0.9, BELOW_1)
    adam_beta1: float = key("weights", "decay rate of the first moment", 0.9, BELOW_1)
    adam_beta2: float = key("weights", "decay rate of the second moment", 0.999, BELOW_1)
    optimizer_eps: float = key("weights", "added to the square root of the second moment", 1e-6, ABOVE_0)
    weight_decay: float = key(
        "weights", "decay of all weights except biases and LayerNorms", 0.01, AT_LEAST_0
    )
    max_grad_norm: Optional[float] = key(
        "weights", "clip gradients to this global norm; adam and adamw only", None, ABOVE_0
    )
    loss_scaling: float = key(
        "weights", "factor on the loss that keeps float16 gradients from underflowing", 1.0, ABOVE_0
    )
    auto_loss_scaling: bool = key("weights", "let PopTorch adjust loss_scaling during training", False)


# Pretraining reads none of these.
FINE_TUNING: Tuple[Type[KeyGroup], ...] = (ExampleKeys, AnswerKeys, ValidationKeys)
# Fine-tuning reads none of these.
_PRETRAINING = frozenset(
    "corpus text_column corpus_split validation_corpus validation_fraction mask_tokens masked_lm_probability "
    "dynamic_masking whole_word_masking short_sequence_probability preprocessing_workers compile_only "
    "embedding_serialization_factor one_hot_masked_positions".split()
)
_SQUAD = frozenset("squad_version doc_stride max_query_length".split())
# The groups of flags in --help, by title, in the order of the keys.
GROUPS: Dict[str, Tuple[Type[KeyGroup], ...]] = {
    "run: task, length, logging and checkpoints": (RunKeys,),
    "model: the encoder": (FamilyKeys, EncoderKeys),
    "data: corpus, tokenizer, masking and loading": (DataKeys,),
    "fine-tuning on SQuAD and GLUE": FINE_TUNING,
    "training: batch, optimizer and schedule": (BatchKeys, OptimizerKeys),
    "device: placement and precision on IPUs": (DeviceKeys,),
}


# dataclass collects the fields of the last base first: this order is that of GROUPS, reversed.
@dataclass(frozen=True)
class Keys(
    DeviceKeys,
    OptimizerKeys,
    BatchKeys,
    ValidationKeys,
    AnswerKeys,
    ExampleKeys,
    DataKeys,
    EncoderKeys,
    FamilyKeys,
    RunKeys,
):
    """The keys of a run. The constructor checks types and bounds; ConfigError lists every problem.

    Config adds the rules on combinations of keys.
    """

    def __post_init__(self) -> None:
        problems: List[Problem] = []
        for entry in entries().values():
            value = getattr(self, entry.name)
            try:
                if value is REQUIRED:
                    raise ValueError(f"is missing; expected {describe(kinds()[entry.name])}")
                value = convert(value, kinds()[entry.name])
                _check_bounds(value, entry.metadata["bounds"])
                object.__setattr__(self, entry.name, value)
            except ValueError as error:
                problems.append(Problem(entry.name, str(error)))
        if problems:
            raise ConfigError(problems)
        if len(self.matmul_proportion) == 1:
            object.__setattr__(self, "matmul_proportion", self.matmul_proportion * self.ipus_per_replica)

    @property
    def trackers(self) -> Tuple[str, ...]:
        """Where metrics go besides metrics.jsonl."""
        chosen = ("wandb", "tensorboard") if self.report_to == "all" else (self.report_to or "",)
        return tuple(
            name for name in ("wandb", "tensorboard") if name in chosen or (self.wandb and name == "wandb")
        )

    @property
    def resolved_norm(self) -> Norm:
        return self.norm or ("pre" if self.model == "groupbert" else "post")

    @property
    def resolved_convolution(self) -> bool:
        return self.model == "groupbert" if self.convolution is None else self.convolution

    @property
    def resolved_feed_forward(self) -> FeedForward:
        return self.feed_forward or ("grouped_projected" if self.model == "groupbert" else "dense")

    @property
    def resolved_validation_layers_per_ipu(self) -> Tuple[int, ...]:
        return self.validation_layers_per_ipu or validation_layers(self.num_layers)

    @property
    def resolved_validation_replication_factor(self) -> int:
        if self.device == "ipu-model":  # it has no replicas
            return self.validation_replication_factor or 1
        room = self.ipus_per_replica * self.replication_factor // len(self.resolved_validation_layers_per_ipu)
        return self.validation_replication_factor or max(room, 1)

    @property
    def warmup_steps(self) -> int:
        """Weight updates of the learning rate's warm-up; 0 if training_steps isn't known yet."""
        return round(self.lr_warmup * self.training_steps) if self.lr_warmup < 1 else round(self.lr_warmup)

    @property
    def separator_tokens(self) -> int:
        """Tokens of padding between two sequences of a row, so that a convolution sees only one of them."""
        return self.conv_kernel_size // 2 if self.resolved_convolution else 0

    @property
    def pack_depth(self) -> int:
        """The most sequences in a row; 1 without packing."""
        if not self.packed_data:
            return 1
        return self.max_sequences_per_pack or most_sequences(self.sequence_length, self.separator_tokens)

    @property
    def row_mask_tokens(self) -> int:
        """Predictions of a row. Rounding to whole predictions may give each sequence but one another one."""
        return self.mask_tokens + self.pack_depth - 1

    @property
    def sequences_per_row(self) -> float:
        """The sequences that a verdict counts in a row."""
        if not self.packed_data:
            return 1.0
        factor = self.packing_factor or published_packing_factor(self.sequence_length)
        return min(float(self.pack_depth), factor)

    def input_shapes(self, rows: int) -> List[Tuple[int, ...]]:
        """The shapes of a batch of so many rows, in the order of the model's arguments."""
        facts = self.task_facts
        packed = facts.packed_inputs if self.packed_data else None
        sizes = {"B": rows, "S": self.sequence_length, "M": self.row_mask_tokens, "D": self.pack_depth}
        return [tuple(sizes[letter] for letter in shape) for shape in packed or facts.inputs]

    @property
    def sequences_per_step(self) -> int:
        """Sequences per weight update; with packed rows, an expectation."""
        return round(self.global_batch_size * self.sequences_per_row)

    @property
    def task_model(self) -> Type[TaskModel]:
        """The task's entry in model.TASKS. Raises ConfigError."""
        from model import TASKS  # here: torch takes seconds to import, and --help doesn't need it

        if self.task not in TASKS:
            raise ConfigError([Problem("task", f"{self.task!r} is not a task; {nearest(self.task, TASKS)}")])
        return TASKS[self.task]

    @property
    def task_facts(self) -> Type[TaskFacts]:
        """What is known about the task without PyTorch. Raises ConfigError."""
        if self.task in FACTS:
            return FACTS[self.task]
        return self.task_model

    @property
    def class_names(self) -> Tuple[str, ...]:
        """The classes of a GLUE task, one for a regression; none for other tasks and a user's own classes."""
        if not self.task_facts.has_classes:
            return ()
        from data.glue.tasks import GLUE_TASKS

        task = GLUE_TASKS[self.glue_task]
        if task.is_regression:
            return ("score",)
        return task.classes if task.columns else ()

    @property
    def head(self) -> Head:
        """The task's head, for its placement."""
        return self.task_facts.place

    def section(self, kind: Type[Section], **given: Any) -> Section:
        """A dataclass `kind` with its fields from `given`, otherwise from the keys of the same name."""
        wanted = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: given[name] if name in given else getattr(self, name) for name in wanted})

    def model_config(self) -> ModelConfig:
        """The model's configuration, with the family's defaults resolved. Raises model.ModelConfigError."""
        return self.section(
            ModelConfig,
            norm=self.resolved_norm,
            convolution=self.resolved_convolution,
            feed_forward=self.resolved_feed_forward,
            type_vocab_size=2,  # sentences A and B
        )


@lru_cache(maxsize=None)
def entries() -> Mapping[str, Field[Any]]:
    """The declarations of all keys, by name."""
    return {entry.name: entry for entry in fields(Keys)}


@lru_cache(maxsize=None)
def kinds() -> Mapping[str, Any]:
    """The types of all keys, by name."""
    return get_type_hints(Keys)


def defaults() -> Mapping[str, Any]:
    """The defaults of the keys that have one, by name."""
    return {name: entry.default for name, entry in entries().items() if entry.default is not REQUIRED}


_GLUE = frozenset({"glue_task", "text_columns", "label_column"})


def unread_keys(task: str) -> FrozenSet[str]:
    """The keys that a task doesn't read."""
    fine_tuning = frozenset(entry.name for part in FINE_TUNING for entry in fields(part))
    if task == "pretraining":
        return fine_tuning
    answers = frozenset(entry.name for entry in fields(AnswerKeys))
    return _PRETRAINING | (
        frozenset({"glue_task", "text_columns", "label_column"}) if task == "squad" else _SQUAD | answers
    )


def keys_that_alter(*effects: Effect) -> FrozenSet[str]:
    """The keys whose `alters` is one of `effects`."""
    return frozenset(name for name, entry in entries().items() if entry.metadata["alters"] in effects)


def _check_bounds(value: Any, bounds: str) -> None:
    if not bounds or value is None:
        return
    low, high = (float(end) for end in bounds[1:-1].split(","))
    for number in value if isinstance(value, tuple) else (value,):
        above = number >= low if bounds[0] == "[" else number > low
        below = number <= high if bounds[-1] == "]" else number < high
        if not (above and below):
            raise ValueError(f"{number} is outside {bounds}")
