"""The training loop: reads batches, trains, and emits metrics, evaluations and checkpoints."""

from __future__ import annotations

import math
import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence

import torch

import data.workers
import ipu
from config import RunKeys
from data import DataError
from ipu.keys import BatchKeys, DeviceKeys

from .compilation import compile_program
from .errors import DivergenceError, TrainingError, message_from_worker
from .evaluation import Evaluator
from .metrics import Task
from .metrics_file import Record
from .optimizer import Schedule, set_learning_rate
from .report import Reporter
from .signals import RunInterrupted, StopRequest, TimedOut, time_limit


@dataclass(frozen=True)
class LoopPlan(DeviceKeys, BatchKeys, RunKeys):
    """The keys that the loop needs; steps are weight updates. A row is a sequence, or with `packed_data` some
    of them, `sequences_per_row` on average."""

    packed_data: bool = False
    sequences_per_row: float = 1.0

    @property
    def micro_batches_per_replica(self) -> int:
        """Micro batches per replica in one executor call."""
        return self.device_iterations * self.gradient_accumulation


@dataclass(frozen=True)
class Speed:
    """Seconds of a run's device calls, including the wait for data, without compilation, evaluations and
    checkpoints.

    Excludes the first call of each process, a warm-up that starts the DataLoader's workers.
    """

    calls: int = 0
    data_wait_s: float = 0.0
    device_s: float = 0.0
    samples: float = 0.0

    def after(self, data_wait_s: float, device_s: float, samples: float) -> Speed:
        """The totals with one more call."""
        return Speed(
            self.calls + 1,
            self.data_wait_s + data_wait_s,
            self.device_s + device_s,
            self.samples + samples,
        )

    def record(self, rows_per_call: Optional[int] = None) -> Record:
        """Mean `samples_per_s`, and `data_wait_fraction`, the fraction of the time spent waiting for data;
        with the rows of a call, mean `packs_per_s` too.

        Empty before the second call.
        """
        seconds = self.data_wait_s + self.device_s
        if not self.calls:
            return {}
        packs = {} if rows_per_call is None else {"packs_per_s": self.calls * rows_per_call / seconds}
        return {
            "samples_per_s": self.samples / seconds,
            **packs,
            "data_wait_fraction": self.data_wait_s / seconds,
        }


@dataclass(frozen=True)
class Progress:
    """The progress of a run: `record` is the last line of metrics, `checkpoint` the newest checkpoint.

    `evaluation_due` is true if a stop came before this step's evaluation. `speed` covers the whole run,
    including earlier processes.
    """

    step: int
    record: Record
    evaluation_due: bool
    checkpoint: Optional[Path]
    speed: Speed = Speed()

    def summary(self, plan: LoopPlan) -> Record:
        """The last record, with the run's mean speed instead of the last call's."""
        return {**self.record, **self.speed.record(plan.samples_per_call if plan.packed_data else None)}


def train(
    plan: LoopPlan,
    start: Progress,
    *,
    task: Task,
    rng_state: Optional[List[int]],
    executor: Any,
    optimizer: Any,
    schedule: Schedule,
    batches: Iterable[Sequence[torch.Tensor]],
    evaluate: Evaluator,
    save: Callable[[Progress], Path],
    reporter: Reporter,
    stop: StopRequest,
    instances: ipu.Instances = ipu.ALONE,
) -> Progress:
    """Trains from `start` to `plan.training_steps` or until `stop`, and ends with a checkpoint.

    `rng_state` is this instance's random state in the checkpoint that the run resumes.

    Raises DivergenceError if the loss of an update is NaN or infinite; nothing is saved then, so the last
    valid checkpoint stays the newest. Raises DataError for damaged data, after saving. A stop during an
    update takes effect after it, one during a wait for data at once; a stop during an evaluation aborts it,
    and the resumed run repeats it. With several instances, all call this, compute metrics from the outputs
    of all and stop together.
    """
    now, saved_step = start, start.step
    damage: List[str] = []  # the error of the data, if there is one
    if start.evaluation_due:
        now = _evaluated(now, evaluate, stop, instances, damage)
        if not now.evaluation_due:
            reporter.write(now.record)
    iterator = iter(batches)
    is_warm, hung = False, None
    while now.step < plan.training_steps:
        began = time.perf_counter()
        try:
            with time_limit(plan.data_timeout_s):
                batch = _next_batch(iterator, stop)
        except TimedOut:
            batch, stop.signal_name = None, "a wait for data"  # on all instances
            hung = data.workers.described(multiprocessing.active_children())
            data.workers.end(multiprocessing.active_children())
        except DataError as error:
            batch, stop.signal_name = None, "damaged data"
            damage.append(message_from_worker(error))
        data_wait_s = time.perf_counter() - began
        if _agreed(stop, instances):
            break
        assert batch is not None, "only a stop ends the wait for a batch"
        set_learning_rate(optimizer, schedule.at(now.step))
        executor.setOptimizer(optimizer)
        if not executor.isCompiled():
            # Separately, or the samples/s of the first update would include minutes of compilation.
            compile_program(executor, batch, "training")
            if rng_state is not None:
                executor.rng_state = rng_state
        began = time.perf_counter()
        outputs = _called(executor, batch, plan, now)
        device_s = time.perf_counter() - began
        outputs = _joined(instances.gather(outputs))
        step = now.step + plan.device_iterations
        samples, rows = _samples(outputs, plan, task), plan.samples_per_call
        seconds = data_wait_s + device_s
        record = {
            "step": step,
            **task.measure(outputs, plan.micro_batches_per_replica),
            "learning_rate": schedule.at(now.step),
            "samples_per_s": samples / seconds,
            **({"packs_per_s": rows / seconds} if plan.packed_data else {}),
        }
        if not plan.synthetic_data:  # then the device returns nothing, and the loss is arbitrary
            _refuse_divergence(record, now.checkpoint)
        last = step >= plan.training_steps
        due = last or _due(step, plan.eval_steps, plan.device_iterations)
        speed = now.speed.after(data_wait_s, device_s, samples) if is_warm else now.speed
        is_warm = True
        now = replace(now, step=step, record=record, evaluation_due=due, speed=speed)
        if due:
            now = _evaluated(now, evaluate, stop, instances, damage)
        reporter.write(now.record)
        if last or _due(step, plan.checkpoint_steps, plan.device_iterations):
            now, saved_step = replace(now, checkpoint=save(now)), step
    if now.step != saved_step:
        now = replace(now, checkpoint=save(now))
    saved = "nothing was trained yet" if now.checkpoint is None else f"the checkpoint is {now.checkpoint}"
    again = "rerun" if now.checkpoint is None else "rerun with --resume"
    if damage:
        raise DataError(f"{damage[0]}\nThe run stopped after step {now.step}; {saved}. Then {again}")
    if hung is not None:
        raise TrainingError(
            f"no batch came for {plan.data_timeout_s} s (--data-timeout-s): {hung}. The workers were killed; "
            f"{saved}. See that the data can be read, then {again}"
        )
    return now


def _samples(outputs: Sequence[torch.Tensor], plan: LoopPlan, task: Task) -> float:
    """The sequences of a call."""
    if not plan.packed_data:
        return plan.samples_per_call
    if plan.synthetic_data or task.sequences is None:
        return plan.samples_per_call * plan.sequences_per_row
    return task.sequences(outputs)


def _next_batch(
    iterator: Iterator[Sequence[torch.Tensor]], stop: StopRequest
) -> Optional[Sequence[torch.Tensor]]:
    """The next batch; None if a stop was requested before it came."""
    try:
        with stop.at_once():
            return next(iterator)
    except RunInterrupted as interrupt:
        stop.signal_name = str(interrupt)
        return None


def _called(executor: Any, batch: Sequence[torch.Tensor], plan: LoopPlan, now: Progress) -> Any:
    """One call of the device. Raises DivergenceError for a floating-point exception, if they are enabled."""
    try:
        return executor(*batch)
    except ipu.poptorch.Error as error:
        if not plan.floating_point_exceptions:
            raise
        updates = f"update {now.step + 1}"
        if plan.device_iterations > 1:
            updates = f"updates {now.step + 1} to {now.step + plan.device_iterations}"
        raise DivergenceError(
            f"the device stopped in {updates}, with floating_point_exceptions on: {error}"
            f"{_intact(now.checkpoint)}"
        ) from error


_OTHER = "a signal to another instance, or damaged data there"


def _agreed(stop: StopRequest, instances: ipu.Instances) -> bool:
    """True if any instance received a stop signal; the same on all instances."""
    if not instances.any(bool(stop)):
        return False
    stop.signal_name = stop.signal_name or _OTHER
    return True


def _joined(gathered: Sequence[Sequence[torch.Tensor]]) -> List[torch.Tensor]:
    """The outputs of the replicas of all instances: [] or [replicas] each."""
    if len(gathered) == 1:
        return list(gathered[0])
    return [torch.cat([part.reshape(-1) for part in parts]) for parts in zip(*gathered)]


def _evaluated(
    now: Progress, evaluate: Evaluator, stop: StopRequest, instances: ipu.Instances, damage: List[str]
) -> Progress:
    """The progress after an evaluation; as before if a stop ended it, or damaged data, added to `damage`."""
    try:
        result = None if _agreed(stop, instances) else evaluate(stop)
    except DataError as error:
        damage.append(message_from_worker(error))
        result, stop.signal_name = None, "damaged data"
    if result is None:
        stop.signal_name = stop.signal_name or _OTHER  # after the last update nobody asks again
        return now
    return replace(now, record={**now.record, **result}, evaluation_due=False)


def _due(step: int, every: Optional[int], device_iterations: int) -> bool:
    """True if the last call reached a multiple of `every`."""
    return every is not None and step // every > (step - device_iterations) // every


def _refuse_divergence(record: Record, checkpoint: Optional[Path]) -> None:
    if math.isfinite(record["loss"]):
        return
    raise DivergenceError(
        f"the loss of update {int(record['step'])} is {record['loss']} at learning rate "
        f"{record['learning_rate']:.3g}. Use a lower learning_rate, a longer lr_warmup or, in float16, a "
        f"lower loss_scaling{_intact(checkpoint)}"
    )


def _intact(checkpoint: Optional[Path]) -> str:
    if checkpoint is None:
        return ""
    return f"; the last valid checkpoint is intact: --checkpoint {checkpoint} with another --output"


def refuse_bad_weights(model: torch.nn.Module, step: int) -> None:
    """Raises DivergenceError if a weight is NaN or infinite.

    A finite loss doesn't tell whether the update after it was finite.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergenceError(
                f"after update {step} the weight {name} holds NaN or infinity; no checkpoint was written. "
                "Start from an earlier checkpoint (--checkpoint) with a lower learning_rate or loss_scaling"
            )
