"""Held-out evaluation: exact means over the validation set, without touching the run's state."""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch

import ipu

from .metrics import EvaluationMetrics, Record
from .signals import StopRequest

# Evaluates unless the request becomes true meanwhile: then None.
Evaluator = Callable[[StopRequest], Optional[Record]]


def build_evaluator(
    model: torch.nn.Module,
    training_executor: Any,
    options: Any,
    rows: Callable[[int], torch.utils.data.Dataset[Any]],
    *,
    micro_batch_size: int,
    max_batches: Optional[int],
    collate: Callable[[Any], Any],
) -> Evaluator:
    """A function that evaluates the current weights of `model` on the held-out examples.

    `rows(n)` gives the validation set padded to a multiple of n rows that metrics don't see. `max_batches`
    limits the micro batches, rounded up to whole executor calls (None: the whole set). IPUs run one
    executable at a time, so the training executor lets go of them first; it takes them back by itself.
    """
    model.eval()
    executor = ipu.poptorch.inferenceModel(model, options)
    model.train()
    combined = micro_batch_size * options.device_iterations
    max_calls = None if max_batches is None else -(-max_batches // options.device_iterations)
    loader = ipu.poptorch.DataLoader(
        options,
        rows(combined),
        batch_size=micro_batch_size,
        shuffle=False,
        collate_fn=collate,
        auto_distributed_partitioning=False,
    )

    def evaluate(stop: StopRequest) -> Optional[Record]:
        if training_executor.isCompiled() and training_executor.isAttachedToDevice():
            training_executor.detachFromDevice()
        metrics = EvaluationMetrics()
        model.eval()
        for number, batch in enumerate(loader):
            if max_calls is not None and number >= max_calls:
                break
            if stop:
                break
            metrics.add(executor(*batch))
        if executor.isCompiled() and executor.isAttachedToDevice():
            executor.detachFromDevice()
        model.train()
        return None if stop else metrics.result()

    return evaluate
