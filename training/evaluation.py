"""Held-out evaluation: exact means over the validation set, without touching the run's state."""

from __future__ import annotations

from typing import Any, Callable, Optional, Protocol, Sequence

import torch

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
) -> Evaluator:
    """A function that evaluates the current weights of `model` on the held-out examples.

    `rows(n)` gives the validation set padded to a multiple of n rows that metrics don't see. `max_batches`
    limits the micro batches, rounded up to whole executor calls (None: the whole set). `metrics` makes what
    gathers one evaluation. IPUs run one executable at a time, so the training executor, if there is one,
    lets go of them first; it takes them back by itself. `refresh` is called in between: a model that isn't
    the trained one takes over its weights there.
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
        _let_go(training_executor)
        refresh()
        gathered = metrics()
        model.eval()
        for number, batch in enumerate(loader):
            if max_calls is not None and number >= max_calls:
                break
            if stop:
                break
            gathered.add(executor(*batch))
        _let_go(executor)
        model.train()
        return None if stop else gathered.result()

    return evaluate


def _let_go(executor: Optional[Any]) -> None:
    if executor is not None and executor.isCompiled() and executor.isAttachedToDevice():
        executor.detachFromDevice()
