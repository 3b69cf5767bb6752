"""Held-out evaluation: exact means over the validation set, with no effect on the run's state."""

from __future__ import annotations

from typing import Any, Callable, Optional, Protocol, Sequence

import torch
from tqdm import tqdm

import data
import ipu

from .compilation import compile_program
from .metrics_file import Record
from .signals import StopRequest

# Returns None if the request becomes true during the evaluation. Raises DataError for damaged data; other
# instances get None then.
Evaluator = Callable[[StopRequest], Optional[Record]]


class Metrics(Protocol):
    """Accumulates an evaluation: `add` gets the outputs of each call under `OutputMode.All`, in order."""

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
    progress: bool = False,
) -> Evaluator:
    """A function that evaluates the current weights of `model` on the held-out examples.

    `rows(n)` returns the validation set, padded to a multiple of n with rows that metrics ignore.
    `max_batches` limits the micro batches, rounded up to whole calls of all instances (None: the whole set).
    `metrics` creates the accumulator of one evaluation. IPUs run one executable at a time, so the training
    executor, if there is one, is detached first; it attaches again at its next call. `refresh` is called in
    between, to copy the trained weights if `model` is a copy. Several instances share the micro batches, and
    all get the result. `progress`: show a bar.
    """
    model.eval()
    executor = ipu.poptorch.inferenceModel(model, options)
    model.train()
    micro_batches = options.device_iterations * options.replication_factor
    combined = micro_batch_size * micro_batches
    dataset: Any = rows(combined * instances.count)
    rounds = len(dataset) // (combined * instances.count)
    if max_batches is not None:
        rounds = min(rounds, -(-max_batches // (micro_batches * instances.count)))
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
        damage: Optional[data.DataError] = None
        stopped = False
        batches = iter(loader)
        for _ in tqdm(range(rounds), "evaluation", unit="call", disable=not progress, leave=False):
            try:
                batch = next(batches)
            except data.DataError as error:  # raised below: the others wait for this instance
                damage = error
            stopped = instances.any(bool(stop) or damage is not None)
            if stopped:
                break
            if not executor.isCompiled():
                compile_program(executor, batch, "evaluation")
            for outputs in instances.gather(executor(*batch)):
                gathered.add(outputs)
        stopped = stopped or instances.any(bool(stop))
        _let_go(executor)
        model.train()
        if damage is not None:
            raise damage
        return None if stopped else gathered.result()

    return evaluate


def _let_go(executor: Optional[Any]) -> None:
    if executor is not None and executor.isCompiled() and executor.isAttachedToDevice():
        executor.detachFromDevice()
