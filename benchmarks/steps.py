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
from ipu.options import DevicePlan, training_options

# Sources of a step's data: prepared text; one random batch repeated; none, generated on the device.
DATA = ("real", "generated", "synthetic")


@dataclass(frozen=True)
class TimedCall:
    """One device call: host seconds spent waiting for its data, and in the call."""

    data_s: float
    device_s: float

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
        steps.append(TimedCall(loaded - began, time.perf_counter() - loaded))
    executor.destroy()
    return steps


def random_batch(config: Config, samples: int, seed: int) -> data.Batch:
    """`samples` sequences of random tokens without padding, every mask slot in use: int32, in the order of
    `data.BATCH_FIELDS`."""
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
    """Sequences per device call, over all replicas."""
    return config.samples_per_call


def flops_per_sample(config: Config) -> int:
    """Forward and backward, no recomputation (derived)."""
    return models.flops_per_sequence(
        config.model_config(), config.sequence_length, config.mask_tokens, training=True
    )
