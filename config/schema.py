"""The typed configuration of a run: one field is one documented key of configs.yml and one command-line flag.

`load` reads a named recipe, lays the command line's values over it and checks the whole; nothing runs on a
configuration that could not. What follows from the keys (global batch, pipeline depth, ...) is in `derived`.
"""

# ruff: noqa: RUF009 (key() makes a dataclasses.field)
from __future__ import annotations

import argparse
from dataclasses import Field, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    List,
    Literal,
    Mapping,
    Optional,
    Set,
    Tuple,
    Type,
    TypeVar,
    get_type_hints,
)

import yaml

from ipu.placement import minimum_gradient_accumulation, pipeline_stages

from .flags import FlagParser, add_key_flags
from .recipes import ConfigError, Problem, Recipe, convert, describe, nearest, read_recipes
from .rules import TARGET_IPUS, default_validation_layers, rule_problems

if TYPE_CHECKING:
    from model.config import ModelConfig

__all__ = ["TARGET_IPUS", "Config", "ConfigError", "FlagParser", "add_flags", "derived", "load", "names"]

CONFIGS = Path(__file__).resolve().parents[1] / "configs.yml"

# Flags are grouped as the fields below are; each group is named by its first field.
_GROUPS = {
    "task": "run: what to do, for how long, and what to write down",
    "model": "model: the encoder",
    "corpus": "data: corpus, tokenizer, masking and loading",
    "squad_version": "fine-tuning on SQuAD and GLUE",
    "micro_batch_size": "training: batch, optimizer and schedule",
    "device": "device: placement and precision on IPUs",
}

# Keys that may be "auto": `auto_placement` finds their values, a Config has only found ones.
AUTO = "auto"
# As an entry of layers_per_ipu: any number of layers.
ANY = -1
AUTO_KEYS = ("layers_per_ipu", "micro_batch_size", "matmul_proportion")

AT_LEAST_0, AT_LEAST_1, ABOVE_0, BELOW_1 = "[0, inf)", "[1, inf)", "(0, inf)", "[0, 1)"
SEEDS = f"[0, {2**63})"  # every generator takes these
# Far above any model for IPUs, and low enough that no product of sizes leaves 64 bits.
TOKENS, FEATURES, LAYERS, TOKEN_IDS = "[8, 65535]", "[1, 65536]", "[1, 1000]", f"[8, {2**31})"
SEQUENCES, STEPS = "[1, 65536]", f"[1, {2**31})"
Family = Literal["bert", "groupbert"]
Norm = Literal["pre", "post"]
FeedForward = Literal["dense", "grouped", "grouped_projected"]
Optimizer = Literal["sgd", "adam", "adamw", "lamb", "lamb_no_bias_correction"]
Schedule = Literal["constant", "linear", "polynomial"]
Section = TypeVar("Section")
Device = Literal["auto", "ipu", "ipu-model", "simulator"]


# Fields are ordered by meaning, so required ones follow optional ones: for dataclass, this is their default.
_REQUIRED: Any = object()


def key(doc: str, default: Any = _REQUIRED, bounds: str = "") -> Any:
    """One configuration key; one without default must be given. `bounds` is an interval such as "[0, 1)"."""
    return field(default=default, metadata={"doc": doc, "bounds": bounds})


@dataclass(frozen=True)
class Config:
    """A complete run. Creating one checks types and rules; ConfigError names everything that is wrong."""

    task: Literal["pretraining", "squad", "glue"] = key("what to train", "pretraining")
    seed: int = key("of every random draw: data order, masks, initial weights, dropout", 42, SEEDS)
    training_steps: int = key("weight updates; 0: as many as epochs make (fine-tuning)", 0, AT_LEAST_0)
    eval_steps: Optional[int] = key(
        "weight updates between evaluations; none: only first and last", None, AT_LEAST_1
    )
    eval_batches: Optional[int] = key(
        "micro batches of an evaluation; none: the whole validation set", None, AT_LEAST_1
    )
    checkpoint_steps: Optional[int] = key(
        "weight updates between checkpoints; none: only the last", None, AT_LEAST_1
    )
    checkpoints_to_keep: int = key("newest checkpoints that stay on disk", 2, AT_LEAST_1)
    log_steps: int = key("weight updates between lines in the log", 1, AT_LEAST_1)
    wandb: bool = key("log to Weights & Biases too", False)
    wandb_project: str = key("project name at Weights & Biases", "groupbert-ipu")
    progress_bar: bool = key("show progress bars", True)

    model: Family = key("family: the defaults of norm, convolution and feed_forward", "groupbert")
    hidden_size: int = key("features of a token", bounds=FEATURES)
    num_layers: int = key("encoder layers", bounds=LAYERS)
    num_heads: int = key("attention heads; hidden_size must be a multiple", bounds=AT_LEAST_1)
    vocab_size: int = key("rows of the embedding table", 30522, TOKEN_IDS)
    max_position_embeddings: int = key("longest sequence that the model can take", 512, TOKENS)
    norm: Optional[Norm] = key("LayerNorm before or after; none: the family's", None)
    convolution: Optional[bool] = key("a convolution module in each layer; none: the family's", None)
    feed_forward: Optional[FeedForward] = key(
        "second projection, and whether an output projection follows; none: the family's", None
    )
    ffn_groups: int = key("groups of the grouped feed-forward projection", 4, AT_LEAST_1)
    conv_group_size: int = key("channels in a group of the convolution", 16, AT_LEAST_1)
    conv_kernel_size: int = key("tokens that the convolution spans; odd", 7, "[1, 65535]")
    hidden_dropout: float = key("dropout of embeddings and residual branches", 0.0, BELOW_1)
    attention_dropout: float = key("dropout of attention probabilities", 0.0, BELOW_1)
    layer_norm_eps: float = key("added to the variance; 1e-3 is safe in float16", 1e-3, "(0, 1)")

    corpus: str = key("python-docs, text files (file, folder, glob), TFRecords or hf:NAME", "python-docs")
    corpus_subset: Optional[str] = key("configuration of a Hugging Face data set", None)
    corpus_split: str = key("split of a Hugging Face data set", "train")
    text_column: str = key("column of a Hugging Face data set that holds the text", "text")
    validation_corpus: Optional[str] = key("corpus to evaluate on; none: held-out documents of corpus", None)
    validation_fraction: float = key("share of documents held out of corpus", 0.05, BELOW_1)
    tokenizer: str = key("train (on corpus), a vocab.txt, a folder or a Hugging Face name", "train")
    lowercase: bool = key("lower-case the text", True)
    sequence_length: int = key("tokens of a sequence, special ones and padding included", bounds=TOKENS)
    mask_tokens: int = key("most masked tokens of a sequence", 20, AT_LEAST_1)
    masked_lm_probability: float = key("share of tokens to predict", 0.15, "(0, 1)")
    dynamic_masking: bool = key("new masks in each epoch", True)
    whole_word_masking: bool = key("mask all pieces of a word together", False)
    short_sequence_probability: float = key("share of examples cut to a random shorter length", 0.1, "[0, 1]")
    cache_folder: str = key("where prepared data is kept", "cache")
    dataloader_workers: int = key("processes that read batches; 0: the main one", 0, AT_LEAST_0)
    preprocessing_workers: Optional[int] = key(
        "processes that prepare data; none: one a core", None, AT_LEAST_0
    )
    async_dataloader: bool = key("prepare the next batch while the device works", False)

    squad_version: Literal["1.1", "2.0"] = key("2.0 has questions without an answer", "1.1")
    train_data: Optional[str] = key(
        "SQuAD JSON file or hf:NAME to train on; none: squad_version's from Hugging Face", None
    )
    validation_data: Optional[str] = key("the same, to evaluate on", None)
    epochs: Optional[float] = key("passes over the training set, in place of training_steps", None, ABOVE_0)
    doc_stride: int = key("tokens between the windows of a long document", 128, AT_LEAST_1)
    max_query_length: int = key("tokens of a question at most", 64, AT_LEAST_1)
    n_best_size: int = key("answers to a question that nbest_predictions.json lists", 20, AT_LEAST_1)
    max_answer_length: int = key("tokens of an answer at most", 30, AT_LEAST_1)
    null_score_diff_threshold: float = key(
        "no answer where its score is above the best answer's by more", 0.0
    )
    validation_micro_batch_size: int = key("micro batch size in evaluation", 20, AT_LEAST_1)
    validation_device_iterations: int = key("micro batches of one device call in evaluation", 4, AT_LEAST_1)
    validation_matmul_proportion: float = key("share of memory for matmuls in evaluation", 0.25, "(0, 1]")
    validation_layers_per_ipu: Optional[Tuple[int, ...]] = key(
        "placement in evaluation; none: half of the layers on each of two IPUs", None, AT_LEAST_0
    )
    validation_replication_factor: Optional[int] = key(
        "copies of the model in evaluation; none: as many as training's IPUs have room for", None, AT_LEAST_1
    )

    micro_batch_size: int = key("sequences that one replica computes at once", bounds=SEQUENCES)
    gradient_accumulation: int = key("micro batches of a replica in a weight update", bounds=STEPS)
    replication_factor: int = key("data-parallel copies of the model", 1, AT_LEAST_1)
    device_iterations: int = key("weight updates of one device call", 1, STEPS)
    reduction: Literal["mean", "sum"] = key("of gradients over accumulation and replicas", "mean")
    optimizer: Optimizer = key("the weight update", "adamw")
    learning_rate: float = key("peak learning rate", bounds=ABOVE_0)
    lr_schedule: Schedule = key("after warm-up: stay, fall in a line to 0, or to lr_end", "linear")
    lr_warmup: float = key("of training_steps below 1, else weight updates", 0.0, AT_LEAST_0)
    lr_warmup_power: float = key("shape of the warm-up: 1 a line, 0.5 GroupBERT's square root", 1.0, ABOVE_0)
    lr_end: float = key("last learning rate of the polynomial schedule", 0.0, AT_LEAST_0)
    momentum: float = key("of sgd", 0.9, BELOW_1)
    adam_beta1: float = key("decay of the first moment", 0.9, BELOW_1)
    adam_beta2: float = key("decay of the second moment", 0.999, BELOW_1)
    optimizer_eps: float = key("added to the root of the second moment", 1e-6, ABOVE_0)
    weight_decay: float = key("of all weights but biases and LayerNorms", 0.01, AT_LEAST_0)
    max_grad_norm: Optional[float] = key("clip to this global norm; sgd, adam and adamw only", None, ABOVE_0)
    loss_scaling: float = key("factor on the loss that keeps float16 gradients above underflow", 1.0, ABOVE_0)
    auto_loss_scaling: bool = key("let PopTorch adapt loss_scaling", False)

    device: Device = key("where to run; auto: an IPU if there is one", "auto")
    target: str = key(f"the machine: {' | '.join(TARGET_IPUS)}", "pod16")
    precision: Literal["float16", "float32"] = key("what an IPU stores and computes in", "float16")
    simulator_precision: Literal["float32", "ipu-float16"] = key(
        "how the simulator computes: fast in float32, or as an IPU would at this precision", "float32"
    )
    ipus_per_replica: int = key("IPUs of one pipeline", bounds=f"[1, {max(TARGET_IPUS.values())}]")
    layers_per_ipu: Tuple[int, ...] = key(
        "encoder layers on each IPU; embeddings stand on the first", bounds=AT_LEAST_0
    )
    matmul_proportion: Tuple[float, ...] = key(
        "share of memory for matmuls, for each IPU or all", (0.25,), "(0, 1]"
    )
    embedding_serialization_factor: int = key(
        "parts in which the vocabulary projection is computed", 1, AT_LEAST_1
    )
    replicated_tensor_sharding: bool = key("spread the optimizer state over replicas", False)
    optimizer_state: Literal["on_chip", "off_chip"] = key("where the optimizer state is kept", "on_chip")
    recompute_checkpoint_every_layer: bool = key("keep each layer's output, recompute the rest", True)
    enable_half_partials: bool = key("accumulate matmuls in float16", True)
    enable_half_first_order_momentum: bool = key("keep the first moment in float16", False)
    stochastic_rounding: bool = key("round float16 at random so that small updates count", True)
    floating_point_exceptions: bool = key("stop at an overflow, a division by zero or a NaN on an IPU", False)
    executable_cache: Optional[str] = key("folder for compiled programs", None)
    compile_only: bool = key("compile for IPUs into executable_cache, without any, and stop", False)
    synthetic_data: bool = key("no transfers between host and IPUs: the model's own speed", False)
    profile_folder: Optional[str] = key("folder for PopVision's reports; none: no profile", None)

    def __post_init__(self) -> None:
        problems: List[Problem] = []
        for entry in _entries().values():
            value = getattr(self, entry.name)
            try:
                if value is _REQUIRED:
                    raise ValueError(f"is missing; expected {describe(_kind(entry))}")
                value = convert(value, _kind(entry))
                _check_bounds(value, entry.metadata["bounds"])
                object.__setattr__(self, entry.name, value)
            except ValueError as error:
                problems.append(Problem(entry.name, str(error)))
        if not problems:  # the rules relate values that are each legal
            if len(self.matmul_proportion) == 1:
                object.__setattr__(self, "matmul_proportion", self.matmul_proportion * self.ipus_per_replica)
            problems = rule_problems(self)
        if problems:
            raise ConfigError(problems)

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
        return self.validation_layers_per_ipu or default_validation_layers(self.num_layers)

    @property
    def resolved_validation_replication_factor(self) -> int:
        if self.device == "ipu-model":  # it has no replicas
            return self.validation_replication_factor or 1
        room = self.ipus_per_replica * self.replication_factor // len(self.resolved_validation_layers_per_ipu)
        return self.validation_replication_factor or max(room, 1)

    @property
    def warmup_steps(self) -> int:
        """Weight updates of the learning rate's warm-up; 0 while training_steps is still to be found."""
        return round(self.lr_warmup * self.training_steps) if self.lr_warmup < 1 else round(self.lr_warmup)

    def section(self, kind: Type[Section]) -> Section:
        """A part of the application's own view of the run: a `kind` whose fields are taken from here by name.

        A field that is unknown here keeps its default in `kind` (TypeError where it has none).
        """
        wanted = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: getattr(self, name) for name in wanted if hasattr(self, name)})

    def model_config(self) -> ModelConfig:
        """The model's part, with the family's defaults filled in; ConfigError if the model refuses it."""
        from model.config import ModelConfig, ModelConfigError  # here: a dry look at recipes needs no torch

        try:
            return ModelConfig(
                vocab_size=self.vocab_size,
                hidden_size=self.hidden_size,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                max_position_embeddings=self.max_position_embeddings,
                norm=self.resolved_norm,
                convolution=self.resolved_convolution,
                feed_forward=self.resolved_feed_forward,
                ffn_groups=self.ffn_groups,
                conv_group_size=self.conv_group_size,
                conv_kernel_size=self.conv_kernel_size,
                hidden_dropout=self.hidden_dropout,
                attention_dropout=self.attention_dropout,
                layer_norm_eps=self.layer_norm_eps,
            )
        except ModelConfigError as error:
            raise ConfigError(str(error)) from error

    def to_dict(self) -> Dict[str, Any]:
        """Every key with a plain value (lists for tuples), ready for YAML or JSON."""
        values = {name: getattr(self, name) for name in _entries()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_yaml(self, name: str = "resolved") -> str:
        """A recipe file with this one recipe; `load(name, path=...)` of it gives an equal Config."""
        return yaml.safe_dump({name: self.to_dict()}, sort_keys=False, default_flow_style=None, width=110)


@lru_cache(maxsize=None)
def _entries() -> Mapping[str, Field]:
    return {entry.name: entry for entry in fields(Config)}


@lru_cache(maxsize=None)
def _kinds() -> Mapping[str, Any]:
    return get_type_hints(Config)


def _kind(entry: Field) -> Any:
    return _kinds()[entry.name]


def _check_bounds(value: Any, bounds: str) -> None:
    if not bounds or value is None:
        return
    low, high = (float(end) for end in bounds[1:-1].split(","))
    for number in value if isinstance(value, tuple) else (value,):
        above = number >= low if bounds[0] == "[" else number > low
        below = number <= high if bounds[-1] == "]" else number < high
        if not (above and below):
            raise ValueError(f"{number} lies outside {bounds}")


def names(path: Path = CONFIGS) -> List[str]:
    """The runnable recipes of a file, in its order; names that start with `_` only hold shared keys."""
    return [name for name in read_recipes(Path(path)) if not name.startswith("_")]


def load(name: str, *, path: Path = CONFIGS, overrides: Optional[Mapping[str, object]] = None) -> Config:
    """The recipe `name` of a file with `overrides` laid over it.

    Raises ConfigError for an unknown name or key, a value of the wrong type or range, and combinations that
    cannot run: all that can be found at once, with file and line where the recipe is to blame.
    """
    path = Path(path)
    recipe = read_recipe(name, path)
    values = {**recipe, **(overrides or {})}
    unknown = [
        Problem(word, f"is no key; {nearest(word, _entries())}") for word in values if word not in _entries()
    ]
    for word in AUTO_KEYS:
        if values.get(word) == AUTO:
            unknown.append(Problem(word, "is auto; auto_placement.load finds its value, as the runners do"))
            del values[word]
    try:
        config = Config(**{word: value for word, value in values.items() if word in _entries()})
    except ConfigError as error:
        unknown.extend(error.problems)
    if unknown:
        mine = set(recipe) - set(overrides or {})
        lines = {word: f"{path.name}:{recipe.lines[word]}: " for word in mine}
        raise ConfigError([Problem("", f"{lines.get(problem.key, '')}{problem}") for problem in unknown])
    return config


def read_recipe(name: str, path: Path = CONFIGS) -> Recipe:
    """The keys that a runnable recipe gives, unchecked, with their lines. Raises ConfigError."""
    recipes = read_recipes(path)
    if name.startswith("_") and name in recipes:
        raise ConfigError(f"{path}: {name!r} only holds keys that recipes share; it cannot run")
    if name not in recipes:
        runnable = [known for known in recipes if not known.startswith("_")]
        raise ConfigError(f"{path} has no configuration {name!r}; {nearest(name, runnable)}")
    return recipes[name]


def free_keys(name: str, path: Path, overrides: Optional[Mapping[str, object]] = None) -> Set[str]:
    """The keys of a recipe, with `overrides` laid over it, whose values are left to a search.

    Raises ConfigError where there is no such recipe.
    """
    given = {**read_recipe(name, path), **(overrides or {})}
    free = {key for key in AUTO_KEYS if given.get(key) == AUTO}
    layers = given.get("layers_per_ipu")
    if isinstance(layers, (list, tuple)) and ANY in layers:
        free.add("layers_per_ipu")
    return free


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` one flag for each key, in kebab case; absent flags leave no trace in its result."""
    add_key_flags(
        parser, list(_entries().values()), _kinds(), groups=_GROUPS, searchable=AUTO_KEYS, searched=AUTO
    )


def overrides_from(namespace: argparse.Namespace) -> Dict[str, object]:
    """The configuration keys that a parsed command line gave."""
    return {name: value for name, value in vars(namespace).items() if name in _entries()}


def derived(config: Config) -> Dict[str, Any]:
    """Every quantity that follows from the keys; None where epochs are given, not training_steps.

    `parameters` and `flops_per_sequence` (forward and backward) include the task's head.
    """
    steps = config.training_steps or None
    samples = config.micro_batch_size * config.gradient_accumulation * config.replication_factor
    return {
        "norm": config.resolved_norm,
        "convolution": config.resolved_convolution,
        "feed_forward": config.resolved_feed_forward,
        "head_size": config.hidden_size // config.num_heads,
        "intermediate_size": 4 * config.hidden_size,
        "ipus": config.ipus_per_replica * config.replication_factor,
        "pipeline_stages": pipeline_stages(config.layers_per_ipu, config.task),
        "minimum_gradient_accumulation": minimum_gradient_accumulation(config.layers_per_ipu, config.task),
        "global_batch_size": samples,
        "samples_per_device_call": samples * config.device_iterations,
        "tokens_per_step": samples * config.sequence_length,
        "device_calls": None if steps is None else steps // config.device_iterations,
        "samples_total": None if steps is None else steps * samples,
        "warmup_steps": None if steps is None else config.warmup_steps,
        **_model_quantities(config),
    }


def _model_quantities(config: Config) -> Dict[str, int]:
    import torch  # here: it takes a second, and recipes can be read without

    from model import ClassificationModel, PretrainingModel, SquadModel, count_parameters, flops_per_sequence

    plan = config.model_config()
    with torch.device("meta"):  # shapes alone: no memory, no random numbers
        kinds = {"pretraining": PretrainingModel, "squad": SquadModel, "glue": ClassificationModel}
        model = kinds[config.task](plan)
    flops = flops_per_sequence(
        plan, config.sequence_length, config.mask_tokens, training=True, head=config.task
    )
    return {"parameters": count_parameters(model), "flops_per_sequence": flops}
