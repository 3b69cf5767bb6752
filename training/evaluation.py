"""Held-out evaluation: exact means over the validation set, without touching the run's state."""

from __future__ import annotations

from typing import Any, Callable, Optional, Protocol, Sequence

import torch

import data
import ipu

from .metrics import Record
from .signals import StopRequest

# Evaluates unless the request becomes true meanwhile: then None.
Evaluator = Callable[[StopRequest], Optional[Record]]


class Metrics(Protocol):
    """What gathers an evaluation: `add` takes one call's outputs under `OutputMode.All`, in order."""

    def add(self, outputs: Sequence[torch.Tensor]) -> None: ...

    def result(self) -> Record: ...


def build_evaluator(
    model: torch.nn.Module,
    training_executor: Optional[Any],
    options: Any,
    rows: Callable[[int], torch.utils.data.Dataset[Any]],
    *,
    micro_batch_size: int,
    max_batches: Optional[int],
    collate: Callable[[Any], Any],
    metrics: Callable[[], Metrics],
    refresh: Callable[[], None] = lambda: None,
    instances: ipu.Instances = ipu.ALONE,
) -> Evaluator:
    """A function that evaluates the current weights of `model` on the held-out examples.

    `rows(n)` gives the validation set padded to a multiple of n rows that metrics don't see. `max_batches`
    limits the micro batches, rounded up to whole executor calls (None: the whole set). `metrics` makes what
    gathers one evaluation. IPUs run one executable at a time, so the training executor, if there is one,
    lets go of them first; it takes them back by itself. `refresh` is called in between: a model that isn't
    the trained one takes over its weights there. Several instances share the calls, and all get the result.
    """
    model.eval()
    executor = ipu.poptorch.inferenceModel(model, options)
    model.train()
    combined = micro_batch_size * options.device_iterations
    dataset: Any = rows(combined)
    num_calls = len(dataset) // combined
    if max_batches is not None:
        num_calls = min(num_calls, -(-max_batches // options.device_iterations))
    rounds = -(-num_calls // instances.count)
    if rounds * instances.count * combined > len(dataset):
        dataset = rows(combined * instances.count)
    loader = ipu.poptorch.DataLoader(
        options,
        dataset,
        batch_size=micro_batch_size,
        sampler=data.SampleStream(0, combined, rounds, rank=instances.index, world_size=instances.count),
        collate_fn=collate,
        auto_distributed_partitioning=False,
    )

    def evaluate(stop: StopRequest) -> Optional[Record]:
        _let_go(training_executor)
        refresh()
        gathered = metrics()
        model.eval()
        stopped = False
        calls = iter(range(num_calls))
        for batch in loader:
            stopped = instances.any(bool(stop))
            if stopped:
                break
            # What is more than the calls asked for is padding, or beyond max_batches.
            for outputs, _ in zip(instances.gather(executor(*batch)), calls):
                gathered.add(outputs)
        stopped = stopped or instances.any(bool(stop))
        _let_go(executor)
        model.train()
        return None if stopped else gathered.result()

    return evaluate


def _let_go(executor: Optional[Any]) -> None:
    if executor is not None and executor.isCompiled() and executor.isAttachedToDevice():
        executor.detachFromDevice()
