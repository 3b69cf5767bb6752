"""Rules on combinations of configuration keys; each error suggests the nearest legal value.

Types and bounds are checked before; each rule yields a Problem for every illegal combination.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Iterator, List, Sequence

from data.keys import SHORTEST_SEQUENCE
from ipu.placement import (
    balanced_layers,
    machine_ipus,
    minimum_gradient_accumulation,
    nearest_divisors,
    nearest_multiples,
    pipeline_stages,
)
from model.config import ModelConfigError
from model.tasks import FACTS

from .recipes import ConfigError, Problem
from .schema import FINE_TUNING, Keys

CLIPPING_OPTIMIZERS = ("adam", "adamw")


def rule_problems(config: Keys) -> List[Problem]:
    """Every problem that prevents this configuration from running."""
    try:
        config.task_facts  # noqa: B018
    except ConfigError as error:
        return list(error.problems)
    rules = (
        _length,
        _model,
        _data,
        _packing,
        _unread,
        _own_data,
        _squad,
        _training,
        _placement,
        _memory,
        _device,
    )
    return [problem for rule in rules for problem in rule(config)]


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _multiples(number: int, factor: int) -> str:
    return _either(nearest_multiples(number, factor))


def _words(layers: Sequence[int]) -> str:
    return " ".join(str(count) for count in layers)


def _length(config: Keys) -> Iterator[Problem]:
    steps = config.training_steps
    if not steps and (config.task_facts.is_pretraining or config.epochs is None):
        also = "" if config.task_facts.is_pretraining else ", or epochs"
        yield Problem("training_steps", f"is missing; set the number of weight updates{also}")
    if config.epochs is not None and config.task_facts.is_pretraining:
        yield Problem("epochs", f"{config.epochs:g} is not read in pretraining; use training_steps instead")
    elif config.epochs is not None and steps:
        yield Problem(
            "epochs",
            f"{config.epochs:g} and training_steps {steps} both set the length; use one of them "
            "(--epochs none or --training-steps 0)",
        )
    for key in ("training_steps", "eval_steps", "checkpoint_steps"):
        count = getattr(config, key)
        if count and count % config.device_iterations:
            yield Problem(
                key,
                f"{count} is not a multiple of device_iterations {config.device_iterations}, the updates "
                f"of one device call; use {_multiples(count, config.device_iterations)}",
            )


def _model(config: Keys) -> Iterator[Problem]:
    try:
        config.model_config()
    except ModelConfigError as error:
        yield from (Problem(fault.field, fault.text) for fault in error.faults)


def _data(config: Keys) -> Iterator[Problem]:
    length = config.sequence_length
    if length > config.max_position_embeddings:
        yield Problem(
            "sequence_length",
            f"{length} is {length - config.max_position_embeddings} above max_position_embeddings "
            f"{config.max_position_embeddings}; shorten it or raise max_position_embeddings to {length}",
        )
    if config.task_facts.is_pretraining and config.mask_tokens > length:
        yield Problem(
            "mask_tokens",
            f"{config.mask_tokens} is more than sequence_length {length}; about "
            f"{max(1, round(length * config.masked_lm_probability))} are needed at masked_lm_probability "
            f"{config.masked_lm_probability:g}",
        )


def _packing(config: Keys) -> Iterator[Problem]:
    if not config.packed_data:
        for key, default in (("max_sequences_per_pack", 3), ("packing_factor", None)):
            if getattr(config, key) != default:
                yield Problem(
                    key, f"{getattr(config, key)} is read with packed_data only; set it, or omit {key}"
                )
        return
    if config.task_facts.packed_inputs is None:
        yield Problem("packed_data", f"is for pretraining only, not for {config.task}; omit it")
        return
    # A sequence's predictions are its share of the row's, rounded to the nearest and at least one.
    share = config.masked_lm_probability
    excess = max(0.5, 1 - SHORTEST_SEQUENCE * share)
    for sequences in range(1, config.pack_depth + 1):
        most = min(
            sequences * config.mask_tokens, int(share * config.sequence_length + excess * sequences + 1e-9)
        )
        if most > config.row_mask_tokens:
            yield Problem(
                "mask_tokens",
                f"{config.mask_tokens} is too few for packed rows: {sequences} sequences in one may have "
                f"{most} masked tokens at masked_lm_probability {share:g}, and a row has room for "
                f"{config.row_mask_tokens} (mask_tokens + {config.pack_depth - 1}); use at least "
                f"{most - config.pack_depth + 1}",
            )
            return


def _unread(config: Keys) -> Iterator[Problem]:
    """Fine-tuning keys that are set although this task doesn't read them."""
    task = config.task_facts
    unread = {other.dataset_key for other in FACTS.values()} - {task.dataset_key}
    for entry in (entry for part in FINE_TUNING for entry in fields(part)):
        key, value = entry.name, getattr(config, entry.name)
        if key == "epochs":  # _length has its rule
            continue
        if value != entry.default and (task.is_pretraining or key in unread):
            default = "none" if entry.default is None else entry.default
            given = _words(value) if isinstance(value, tuple) else value
            yield Problem(key, f"{given} is not read by task {task.task}; leave it at {default}")


def _own_data(config: Keys) -> Iterator[Problem]:
    is_own = config.task == "glue" and config.glue_task.startswith("csv")
    columns = config.text_columns
    if not is_own and (columns is not None or config.label_column != "label"):
        key = "label_column" if columns is None else "text_columns"
        what = f"task {config.task}" + (f" {config.glue_task}" if config.task == "glue" else "")
        yield Problem(key, f"is read with glue_task csv and csv_regression only, not by {what}; omit it")
    elif columns is not None and len(columns) > 2:
        yield Problem("text_columns", f"has {len(columns)} columns; a model reads one text or two")


def _squad(config: Keys) -> Iterator[Problem]:
    if config.task_facts.is_pretraining:
        return
    if config.task == "squad":
        window = config.sequence_length - config.max_query_length - 3  # [CLS] query [SEP] window [SEP]
        if window < 1:
            yield Problem(
                "max_query_length",
                f"{config.max_query_length} leaves no room for the document in sequence_length "
                f"{config.sequence_length}; use at most {config.sequence_length - 4}",
            )
        elif config.doc_stride > window:
            yield Problem(
                "doc_stride",
                f"{config.doc_stride} is more than the {window} tokens of a window, so text would be lost "
                f"between them; use at most {window}",
            )
    if config.embedding_serialization_factor != 1 and not config.head.shares_embeddings:
        yield Problem(
            "embedding_serialization_factor",
            f"{config.embedding_serialization_factor}: a {config.task} model has no vocabulary projection to "
            "serialize; use 1",
        )
    if config.one_hot_masked_positions:
        yield Problem("one_hot_masked_positions", f"a {config.task} model has no masked positions; omit it")
    layers = config.resolved_validation_layers_per_ipu
    if sum(layers) != config.num_layers:
        yield _wrong_sum("validation_layers_per_ipu", layers, config.num_layers)
    stages = pipeline_stages(layers, config.head)
    if config.validation_device_iterations < stages:
        yield Problem(
            "validation_device_iterations",
            f"{config.validation_device_iterations} cannot fill a pipeline of {stages} stages "
            f"({_words(layers)}); use at least {stages}",
        )
    replicas, available = config.validation_replication_factor, machine_ipus().get(config.target)
    if replicas is not None and available is not None and replicas * len(layers) > available:
        yield Problem(
            "validation_replication_factor",
            f"{replicas} replicas of {len(layers)} IPUs need {replicas * len(layers)}, but "
            f"{config.target} has {available}; use at most {max(available // len(layers), 1)}",
        )


def _training(config: Keys) -> Iterator[Problem]:
    warmup, steps = config.lr_warmup, config.training_steps
    if warmup >= 1 and warmup != round(warmup):
        yield Problem(
            "lr_warmup",
            f"{warmup:g} is neither a fraction below 1 nor a whole number of steps; use {round(warmup)}",
        )
    elif steps and warmup >= 1 and warmup > steps:
        yield Problem(
            "lr_warmup",
            f"{warmup:g} steps exceed training_steps by {warmup - steps:g}: training_steps is {steps}; "
            f"use at most {steps}, or a fraction below 1",
        )
    if config.lr_end and config.lr_schedule != "polynomial":
        yield Problem(
            "lr_end", f"{config.lr_end:g} is read by lr_schedule polynomial only, not {config.lr_schedule}"
        )
    elif config.lr_end > config.learning_rate:
        yield Problem("lr_end", f"{config.lr_end:g} is above learning_rate {config.learning_rate:g}")
    if config.lr_warmup_power != 1 and config.lr_schedule != "polynomial":
        yield Problem(
            "lr_warmup_power",
            f"{config.lr_warmup_power:g} is read by lr_schedule polynomial only; {config.lr_schedule} warms "
            "up linearly: use 1",
        )
    if config.max_grad_norm is not None and config.optimizer not in CLIPPING_OPTIMIZERS:
        if config.optimizer == "sgd":
            why = "PopART clips SGD's velocity times the loss scaling, not the gradient"
        else:
            why = f"PopTorch has no clipping for {config.optimizer}"
        yield Problem(
            "max_grad_norm",
            f"{config.max_grad_norm:g} with optimizer {config.optimizer}: {why}; use "
            f"{' or '.join(CLIPPING_OPTIMIZERS)}, or none for max_grad_norm",
        )
    if config.auto_loss_scaling and config.reduction != "mean":
        yield Problem("auto_loss_scaling", f"works with reduction mean only, not {config.reduction}")
    if config.auto_loss_scaling and config.precision != "float16":
        yield Problem("auto_loss_scaling", f"works with precision float16 only, not {config.precision}")


def _wrong_sum(key: str, layers: Sequence[int], num_layers: int) -> Problem:
    found = sum(layers)
    off = f"{abs(found - num_layers)} too {'many' if found > num_layers else 'few'}"
    suggestion = _words(balanced_layers(num_layers, len(layers)))
    return Problem(
        key,
        f"{_words(layers)} places {found} layers, but num_layers is {num_layers}: {off}; try {suggestion}",
    )


def _placement(config: Keys) -> Iterator[Problem]:
    layers, ipus = config.layers_per_ipu, config.ipus_per_replica
    if len(layers) != ipus:
        suggestion = _words(balanced_layers(config.num_layers, ipus))
        yield Problem(
            "layers_per_ipu",
            f"{_words(layers)} is for {len(layers)} IPUs, but ipus_per_replica is {ipus}; try {suggestion}, "
            f"or ipus_per_replica {len(layers)}",
        )
    elif sum(layers) != config.num_layers:
        yield _wrong_sum("layers_per_ipu", layers, config.num_layers)
    if len(config.matmul_proportion) != ipus:
        yield Problem(
            "matmul_proportion",
            f"has {len(config.matmul_proportion)} values for ipus_per_replica {ipus}; set {ipus}, or one "
            "for all",
        )
    stages = pipeline_stages(layers, config.head)
    least = minimum_gradient_accumulation(layers, config.head)
    if config.gradient_accumulation < least:
        yield Problem(
            "gradient_accumulation",
            f"{config.gradient_accumulation} cannot fill the pipeline: layers_per_ipu {_words(layers)} makes "
            f"n = {stages} stages and needs 2n - 1 = {least} micro batches; use at least {least}",
        )


def _memory(config: Keys) -> Iterator[Problem]:
    factor = config.embedding_serialization_factor
    if config.vocab_size % factor:
        yield Problem(
            "embedding_serialization_factor",
            f"{factor} does not divide vocab_size {config.vocab_size}; use "
            f"{_either(nearest_divisors(config.vocab_size, factor))}, or vocab_size "
            f"{_multiples(config.vocab_size, factor)}",
        )
    if config.replicated_tensor_sharding and config.replication_factor == 1:
        yield Problem(
            "replicated_tensor_sharding",
            "has nothing to shard with replication_factor 1; turn it off (--no-replicated-tensor-sharding) "
            "or use more replicas",
        )


def _device(config: Keys) -> Iterator[Problem]:
    if config.compile_only and not config.task_facts.is_pretraining:
        yield Problem("compile_only", f"is read in pretraining only, not by {config.task}; omit it")
    if config.compile_only and config.executable_cache is None:
        yield Problem("compile_only", "needs a folder for the executables; set executable_cache")
    if config.compile_only and config.device == "ipu-model":
        yield Problem("compile_only", "needs device ipu; Poplar's IPU model keeps no executables")
    if config.device == "ipu-model" and config.replication_factor > 1:
        yield Problem(
            "replication_factor",
            f"{config.replication_factor}: Poplar's IPU model has no replication; use 1",
        )
    if config.device == "ipu-model" and (config.validation_replication_factor or 1) > 1:
        yield Problem(
            "validation_replication_factor",
            f"{config.validation_replication_factor}: Poplar's IPU model has no replication; use 1",
        )
    if config.target not in machine_ipus():
        close = difflib.get_close_matches(config.target, machine_ipus(), n=1, cutoff=0.75)
        yield Problem(
            "target",
            f"{config.target!r} is not a known machine; "
            + "".join(f"did you mean {name!r}? " for name in close)
            + f"There are {', '.join(machine_ipus())}",
        )
        return
    needed, available = config.ipus_per_replica * config.replication_factor, machine_ipus()[config.target]
    if needed > available:
        larger = [f"{name} ({ipus})" for name, ipus in machine_ipus().items() if ipus >= needed]
        replicas = available // config.ipus_per_replica
        ways = [f"a target of {' or '.join(larger)}"] if larger else []
        ways += [f"replication_factor {replicas}"] if replicas else []
        yield Problem(
            "target",
            f"{config.target} has {available} IPUs; {config.replication_factor} replicas of "
            f"{config.ipus_per_replica} need {needed}; use {' or '.join(ways) or 'fewer ipus_per_replica'}",
        )
