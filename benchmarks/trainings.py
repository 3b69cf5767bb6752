"""Real trainings through run_pretraining, cached by configuration and seed, resumed if interrupted.

The name of a training's folder is a hash of everything that affects its result, so all benchmarks share
trainings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Callable, Iterator, List, Optional

import run_pretraining
import training
from config import Config, keys_that_alter
from training.checkpoints import newest_checkpoint
from training.metrics_file import read_metrics

from .steps import flops_per_sample

LOOK_EVERY_S = 0.5
_DIVERGED = "diverged.txt"


class Budget:
    """Remaining wall time; without `minutes` there is no limit."""

    def __init__(self, minutes: Optional[float]) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def remaining_s(self) -> Optional[float]:
        return None if self._end is None else self._end - time.monotonic()

    @property
    def is_spent(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def share(self, part: float) -> Budget:
        """A separate budget: the fraction `part` of the remaining time."""
        remaining = self.remaining_s
        return Budget(None if remaining is None else max(remaining, 0.0) * part / 60)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training that has finished, reached its target or diverged.

    `records` are its lines of metrics; `unigram_entropy_nats` is that of the held-out text, NaN if the
    training diverged before its first checkpoint.
    """

    config: Config
    folder: Path
    records: List[training.Record]
    unigram_entropy_nats: float
    has_diverged: bool = False

    @property
    def evaluations(self) -> List[training.Record]:
        return [record for record in self.records if record.get("eval_mlm_loss") is not None]

    @property
    def validation_loss(self) -> float:
        """Of the last evaluation: held-out masked-LM loss, nats; NaN after divergence."""
        return math.nan if self.has_diverged else self.evaluations[-1]["eval_mlm_loss"]

    @property
    def samples_per_update(self) -> int:
        return self.config.sequences_per_step

    @property
    def flops_per_update(self) -> float:
        """Forward and backward, no recomputation (derived: `model.flops_per_sequence`)."""
        return flops_per_sample(self.config) * self.samples_per_update

    @property
    def flops(self) -> float:
        return float(self.flops_per_update * self.config.training_steps)

    def host_s(self, until_step: Optional[int] = None) -> float:
        """Seconds of updates on this host, including waiting for data, without compilation, evaluations and
        checkpoints."""
        return sum(
            self.config.samples_per_call / record.get("packs_per_s", record["samples_per_s"])
            for record in self.records
            if record.get("samples_per_s") and (until_step is None or record["step"] <= until_step)
        )


def digest(config: Config) -> str:
    """Hash of everything that affects the result of training `config`.

    Keys at their defaults are left out, so a new key doesn't invalidate earlier trainings.
    """
    without_effect = keys_that_alter("nothing")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    values = {
        key: value
        for key, value in config.to_dict().items()
        if key not in without_effect and getattr(config, key) != defaults[key]
    }
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()


def trained(
    config: Config,
    label: str,
    *,
    runs: Path,
    budget: Budget,
    target_loss: Optional[float] = None,
) -> Optional[Trained]:
    """The finished training of `config`: from the folder `runs`, or trained now.

    None if the budget ended first; the next call resumes it. With `target_loss` (held-out masked-LM loss,
    nats) the training also ends at the first evaluation that reaches it. Raises the errors of
    `run_pretraining`, and training.RunInterrupted if a signal stopped it.
    """
    folder = runs / digest(config)

    def reached() -> bool:
        return target_loss is not None and _reaches(folder, target_loss)

    if not (_is_finished(folder) or reached()):
        if budget.is_spent:
            return None
        print(f"training {label}, seed {config.seed}: {folder}", flush=True)
        _train(config, folder, lambda: budget.is_spent or reached())
        if not (_is_finished(folder) or reached()):
            return None
    diverged = (folder / _DIVERGED).is_file()
    records = read_metrics(folder / "metrics.jsonl")
    result = Trained(config, folder, records, _entropy(folder), diverged)
    outcome = "diverged" if diverged else f"held-out masked-LM loss {result.validation_loss:.4f}"
    print(f"{label}, seed {config.seed}: {outcome}", flush=True)
    return result


def _train(config: Config, folder: Path, should_stop: Callable[[], bool]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yml"
    recipe.write_text(config.to_yaml("recipe"), encoding="utf-8")
    arguments = ["--configs", str(recipe), "--config", "recipe", "--output", str(folder)]
    if newest_checkpoint(folder)[0] is not None:
        arguments.append("--resume")
    with (folder / "log.txt").open("a", encoding="utf-8") as log, _watched(should_stop) as watch:
        try:
            with contextlib.redirect_stdout(log):
                result = run_pretraining.main(arguments)
        except training.RunInterrupted:
            if watch.has_stopped:
                return
            raise
        except training.DivergenceError as error:
            training.write_atomically(folder / _DIVERGED, f"{error}\n")
            return
        assert isinstance(result, run_pretraining.PretrainingResult)  # not --dry-run
        if result.interrupted_by is not None and not watch.has_stopped:
            raise training.RunInterrupted(result.interrupted_by)


class _Watch:
    """Checks every half second whether a training should stop, and then stops it as SIGTERM would.

    Uses a timer signal, not a thread: signal handlers run in the main thread between bytecodes, so a training
    can't be interrupted after its end.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self.has_stopped = False

    def look(self, _number: int, _frame: Optional[FrameType]) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        request = getattr(handler, "__self__", None)
        if self.has_stopped or not isinstance(request, training.StopRequest) or not self._should_stop():
            return
        self.has_stopped = True
        request.stop("the benchmark")


@contextlib.contextmanager
def _watched(should_stop: Callable[[], bool]) -> Iterator[_Watch]:
    watch = _Watch(should_stop)
    before = signal.signal(signal.SIGALRM, watch.look)
    signal.setitimer(signal.ITIMER_REAL, LOOK_EVERY_S, LOOK_EVERY_S)
    try:
        yield watch
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # discards an alarm that another thread still holds
        signal.signal(signal.SIGALRM, before)


def _is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file() or (folder / _DIVERGED).is_file()


def _reaches(folder: Path, target_loss: float) -> bool:
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return False
    losses = (record.get("eval_mlm_loss") for record in read_metrics(metrics))
    return any(loss is not None and loss <= target_loss for loss in losses)


def _entropy(folder: Path) -> float:
    summary = folder / "summary.json"
    if summary.is_file():
        return float(json.loads(summary.read_text(encoding="utf-8"))["unigram_entropy_nats"])
    checkpoint, _ = newest_checkpoint(folder)
    return math.nan if checkpoint is None else float(checkpoint.state["unigram_entropy_nats"])
