"""Times the device calls of a configuration's training one by one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, List, Sequence

import torch

import data
import ipu
import model as models
import training
from config import Config
from data.masking import IGNORED_LABEL as IGNORED
from ipu.options import DevicePlan, training_options

# Sources of a step's data: prepared text; one random batch repeated; none, generated on the device.
DATA = ("real", "generated", "synthetic")


@dataclass(frozen=True)
class TimedCall:
    """One device call: host seconds spent waiting for its data, and in the call; and its sequences."""

    data_s: float
    device_s: float
    sequences: int

    @property
    def total_s(self) -> float:
        return self.data_s + self.device_s


def timed_steps(config: Config, device: ipu.DeviceChoice, source: str, count: int) -> List[TimedCall]:
    """Times `count` device calls of training on `source`, one of DATA, without compilation.

    Each is `config.device_iterations` weight updates. Raises the errors of preparing the data.
    """
    config = replace(config, synthetic_data=source == "synthetic")
    model = training.initial_model(config.model_config(), head="pretraining", seed=config.seed, folder=None)
    optimizer = training.build_optimizer(model, config.section(training.OptimizerPlan))
    training.place(model, config, config.layers_per_ipu, device=device)
    options = training_options(config.section(DevicePlan))
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    batches = _batches(config, options, source, count)
    steps = []
    for _ in range(count):
        began = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        if not executor.isCompiled():
            training.compile_program(executor, batch, "training")
            loaded = time.perf_counter()
            began = loaded
        executor(*batch)
        ended = time.perf_counter()
        sequences = int((batch[5] != IGNORED).sum()) if config.packed_data else config.samples_per_call
        steps.append(TimedCall(loaded - began, ended - loaded, sequences))
    executor.destroy()
    return steps


def random_batch(config: Config, samples: int, seed: int) -> data.Batch:
    """`samples` sequences of random tokens without padding, every mask slot in use: int32, in the order of
    `data.BATCH_FIELDS`. With packed data, `samples` rows with the recipe's mean number of sequences."""
    if config.packed_data:
        return _random_rows(config, samples, seed)
    draw = torch.Generator().manual_seed(seed)
    shape = (samples, config.sequence_length)
    order = torch.rand(shape, generator=draw).argsort(1)[:, : config.mask_tokens].sort(1).values
    halves = (torch.arange(config.sequence_length) >= config.sequence_length // 2).to(torch.int32)
    return (
        torch.randint(config.vocab_size, shape, generator=draw, dtype=torch.int32),
        torch.ones(shape, dtype=torch.int32),
        halves.repeat(samples, 1),
        order.to(torch.int32),
        torch.randint(config.vocab_size, (samples, config.mask_tokens), generator=draw, dtype=torch.int32),
        torch.randint(2, (samples,), generator=draw, dtype=torch.int32),
    )


def _random_rows(config: Config, rows: int, seed: int) -> data.Batch:
    """As random_batch, in the order of `data.PACKED_FIELDS`."""
    draw = torch.Generator().manual_seed(seed)
    inside, gap = min(max(1, round(config.sequences_per_row)), config.pack_depth), config.separator_tokens
    length = (config.sequence_length - gap * (inside - 1)) // inside
    starts = torch.arange(inside) * (length + gap)
    numbers, places = torch.zeros(2, config.sequence_length, dtype=torch.int32)
    for number, start in enumerate(starts.tolist()):
        numbers[start : start + length] = number + 1
        places[start : start + length] = torch.arange(length, dtype=torch.int32)
    shape = (rows, config.sequence_length)
    order = (torch.rand(shape, generator=draw) + (numbers == 0)).argsort(1)
    masked = order[:, : config.row_mask_tokens].sort(1).values
    unused = torch.zeros(rows, config.pack_depth - inside, dtype=torch.int32)
    firsts, labels = starts.int().repeat(rows, 1), torch.randint(2, (rows, inside), generator=draw)
    return (
        torch.randint(config.vocab_size, shape, generator=draw, dtype=torch.int32),
        numbers.repeat(rows, 1),
        (places >= length // 2).int().repeat(rows, 1),
        masked.int(),
        torch.randint(config.vocab_size, masked.shape, generator=draw, dtype=torch.int32),
        torch.cat([labels.int(), unused + IGNORED], 1),
        places.repeat(rows, 1),
        torch.cat([firsts, unused], 1),
    )


def _batches(config: Config, options: Any, source: str, count: int) -> Iterator[Sequence[torch.Tensor]]:
    samples = config.samples_per_call
    if source != "real":
        batch = random_batch(config, samples, config.seed)
        return iter([batch] * count)
    prepared = data.prepare_pretraining_data(
        config.section(data.PretrainingDataOptions), cache_folder=Path(config.cache_folder), progress=False
    )
    data.require_examples(prepared.train, samples, "one training step")
    loader = ipu.poptorch.DataLoader(
        options,
        prepared.train,
        batch_size=config.micro_batch_size,
        sampler=data.SampleStream(0, samples, count),
        num_workers=config.dataloader_workers,
        collate_fn=data.collate,
        worker_init_fn=training.ignore_interrupts,
        auto_distributed_partitioning=False,
    )
    return iter(loader)


def samples_per_call(config: Config) -> int:
    """Sequences per device call, over all replicas; rows of packed data."""
    return config.samples_per_call


def flops_per_sample(config: Config) -> float:
    """Of a sequence; forward and backward, no recomputation (derived)."""
    row = models.flops_per_sequence(
        config.model_config(), config.sequence_length, config.row_mask_tokens, training=True
    )
    return row / config.sequences_per_row
