"""Shared by the tasks of fine-tuning: evaluation on a copy of the model, length of a run, its summary."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional

import data
import ipu
import model as models
from ipu.options import DevicePlan, inference_options

from .compilation import place
from .evaluation import Evaluator, Metrics, build_evaluator
from .folder import write_atomically
from .metrics_file import plain

if TYPE_CHECKING:
    from config import Config


def validation_evaluator(
    config: Config,
    model: models.TaskModel,
    executor: Optional[Any],
    examples: data.SampleDataset,
    *,
    device: ipu.DeviceChoice,
    max_batches: Optional[int],
    metrics: Callable[[], Metrics],
) -> Evaluator:
    """An evaluator of a copy of `model`, which the configuration's validation_ keys place on the device.

    `executor` trains `model`; None if nothing does. See build_evaluator for the rest.
    """
    labels = getattr(model, "labels", ())
    twin = models.TASKS[model.task].build(model.config, seed=0, labels=labels)

    def refresh() -> None:
        twin.load_state_dict(model.state_dict())

    layers = config.resolved_validation_layers_per_ipu
    place(twin, config, layers, device=device)
    plan = replace(
        config.section(DevicePlan),
        layers_per_ipu=layers,
        matmul_proportion=(config.validation_matmul_proportion,) * len(layers),
        replication_factor=config.resolved_validation_replication_factor,
    )
    options = inference_options(plan)
    options.deviceIterations(config.validation_device_iterations)
    return build_evaluator(
        twin,
        executor,
        options,
        lambda multiple: data.EvaluationDataset(examples, multiple),
        micro_batch_size=config.validation_micro_batch_size,
        max_batches=max_batches,
        collate=data.collate,
        metrics=metrics,
        refresh=refresh,
    )


def with_training_steps(config: Config, examples: int, named: str) -> Config:
    """The configuration with `epochs` converted to weight updates, in whole batches and device calls.

    The last update is filled with the first examples of the next epoch: training never pads.
    """
    if config.epochs is None:
        return config
    steps = math.ceil(config.epochs * examples / config.samples_per_call) * config.device_iterations
    size = config.global_batch_size
    print(f"data: {config.epochs:g} epochs: {steps} weight updates of {size} {named}", flush=True)
    return replace(config, training_steps=steps, epochs=None)


def write_summary(output: Path, record: Mapping[str, float], checkpoint: Optional[Path]) -> None:
    """summary.json: the record, and the checkpoint that it belongs to."""
    summary = {**plain(dict(record)), "checkpoint": None if checkpoint is None else str(checkpoint)}
    write_atomically(output / "summary.json", json.dumps(summary, indent=2) + "\n")
