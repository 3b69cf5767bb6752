"""The training loop: data in, updates done, metrics, evaluations and checkpoints out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Sequence

import torch

from .errors import DivergenceError
from .evaluation import Evaluator
from .metrics import Record, training_metrics
from .optimizers import set_learning_rate
from .reporting import Reporter
from .schedules import Schedule
from .signals import StopRequest


@dataclass(frozen=True)
class LoopPlan:
    """The configuration's keys that the loop needs; steps are weight updates."""

    training_steps: int
    device_iterations: int
    micro_batch_size: int
    gradient_accumulation: int
    replication_factor: int
    eval_steps: Optional[int]
    checkpoint_steps: Optional[int]

    @property
    def micro_batches_per_replica(self) -> int:
        """In one executor call."""
        return self.device_iterations * self.gradient_accumulation

    @property
    def global_batch_size(self) -> int:
        """Sequences in one weight update."""
        return self.micro_batch_size * self.gradient_accumulation * self.replication_factor

    @property
    def samples_per_call(self) -> int:
        return self.global_batch_size * self.device_iterations


@dataclass(frozen=True)
class LoopResult:
    """Where the loop stands when it ends."""

    step: int
    record: Record
    interrupted_by: Optional[str]
    checkpoint: Optional[Path]


def train(
    plan: LoopPlan,
    *,
    start_step: int,
    executor: Any,
    optimizer: Any,
    schedule: Schedule,
    batches: Iterable[Sequence[torch.Tensor]],
    evaluate: Evaluator,
    save: Callable[[int], Path],
    reporter: Reporter,
    stop: StopRequest,
) -> LoopResult:
    """Runs from `start_step` to `plan.training_steps` or until `stop`; ends with a checkpoint.

    Raises DivergenceError when the loss of an update is NaN or infinite: nothing is saved then, so the last
    good checkpoint stays the newest. A stop that comes during an update takes effect after it.
    """
    step = start_step
    record: Record = {"step": step}
    checkpoint: Optional[Path] = None
    saved_step = -1
    if step == 0:
        record.update(evaluate())
        reporter.write(record)
    iterator = iter(batches)
    while step < plan.training_steps and not stop:
        set_learning_rate(optimizer, schedule.at(step))
        executor.setOptimizer(optimizer)
        began = time.perf_counter()
        outputs = executor(*next(iterator))
        seconds = time.perf_counter() - began
        step += plan.device_iterations
        record = {
            "step": step,
            **training_metrics(outputs, plan.micro_batches_per_replica),
            "learning_rate": schedule.at(step - plan.device_iterations),
            "samples_per_s": plan.samples_per_call / seconds,
        }
        _refuse_divergence(record)
        last = step >= plan.training_steps
        if last or _due(step, plan.eval_steps, plan.device_iterations):
            record.update(evaluate())
        reporter.write(record)
        if last or stop or _due(step, plan.checkpoint_steps, plan.device_iterations):
            checkpoint, saved_step = save(step), step
    if stop and saved_step != step:
        checkpoint = save(step)
    return LoopResult(step, record, stop.signal_name, checkpoint)


def _due(step: int, every: Optional[int], device_iterations: int) -> bool:
    """Whether a multiple of `every` was reached by the call that just ended."""
    return every is not None and step // every > (step - device_iterations) // every


def _refuse_divergence(record: Record) -> None:
    if not math.isfinite(record["loss"]):
        raise DivergenceError(
            f"the loss of update {int(record['step'])} is {record['loss']} at learning rate "
            f"{record['learning_rate']:.3g}. The last good checkpoint is untouched: start again from it with "
            "a lower learning_rate, a longer lr_warmup or, in float16, a lower loss_scaling"
        )


def refuse_bad_weights(model: torch.nn.Module, step: int) -> None:
    """Raises DivergenceError if a weight is NaN or infinite.

    A finite loss says nothing of the update that came after it.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergenceError(
                f"after update {step} the weight {name} holds NaN or infinity; no checkpoint was written. "
                "Start again from the last good one with a lower learning_rate or loss_scaling"
            )
