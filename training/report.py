"""Reporting: metrics.jsonl, a progress bar or plain lines, and optionally W&B."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence

from tqdm import tqdm

import data.files

from .errors import TrainingError
from .metrics import Task, is_evaluated
from .metrics_file import MetricsFile, Record, read_metrics
from .trackers import Tracker, start_trackers


class Reporter:
    """Writes each record to all outputs. `total_steps` and `start_step` give the ETA.

    Lines of an earlier process for steps after `keep_until` are removed (-1: a new file). `earlier` is what
    `sync` returned at the checkpoint that the run resumes. `trackers`: see start_trackers.
    """

    def __init__(
        self,
        output: Path,
        *,
        task: Task,
        start_step: int,
        keep_until: int,
        earlier: Optional[Mapping[str, Any]],
        total_steps: int,
        log_steps: int,
        progress_bar: bool,
        trackers: Collection[str],
        wandb_project: str,
        config: Mapping[str, Any],
    ) -> None:
        self._file = MetricsFile(output / "metrics.jsonl", continue_from=keep_until, expected=earlier)
        self._task = task
        self._start_step, self._total_steps, self._log_steps = start_step, total_steps, log_steps
        self._began = time.perf_counter()
        self._trackers = start_trackers(
            trackers, output, project=wandb_project, config=config, first_step=keep_until + 1
        )
        # In a file or a pipe, plain lines are more useful than a progress bar.
        self._bar = (
            tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)
            if progress_bar and sys.stderr.isatty()
            else None
        )

    def write(self, record: Record) -> None:
        self._file.write(record)
        for tracker in list(self._trackers):
            try:
                tracker.write(record)
            except Exception as error:  # of any type, some from libraries of theirs
                self._trackers.remove(tracker)
                print(f"warning: {_failed(tracker, error)}: it gets no more metrics", file=sys.stderr)
        step = int(record["step"])
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if "loss" in record:
                self._bar.set_postfix_str(f"loss {record['loss']:.3f} lr {record['learning_rate']:.2e}")
        if is_evaluated(record) or (
            self._bar is None and (step % self._log_steps == 0 or step == self._total_steps)
        ):
            self._say(self._line(record, step))

    def _line(self, record: Record, step: int) -> str:
        parts = [f"step {step}/{self._total_steps}"]
        if "loss" in record:
            parts += [
                *self._task.training_parts(record),
                f"lr {record['learning_rate']:.3e}",
                f"{record['samples_per_s']:.1f} samples/s",
                f"ETA {_duration(self._remaining_s(step))}",
            ]
        if is_evaluated(record):
            parts.append(self._task.evaluation_part(record))
        return " | ".join(parts)

    def _remaining_s(self, step: int) -> float:
        done = max(step - self._start_step, 1)
        return (time.perf_counter() - self._began) / done * (self._total_steps - step)

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def sync(self) -> Dict[str, Any]:
        """Makes metrics.jsonl durable, and returns what identifies it; see MetricsFile.sync."""
        return self._file.sync()

    def close(self) -> None:
        self._file.close()
        if self._bar is not None:
            self._bar.close()
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:  # as above
                print(f"warning: {_failed(tracker, error)}", file=sys.stderr)


class NoReporter(Reporter):
    """Reports nothing: for all instances but the first."""

    def __init__(self, output: Path, **_: Any) -> None:
        pass

    def write(self, record: Record) -> None:
        pass

    def sync(self) -> Dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def _failed(tracker: Tracker, error: Exception) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{tracker.name} failed ({words[:300]}). The run goes on, and metrics.jsonl has every metric"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def plot_loss(
    metrics: Path,
    picture: Path,
    *,
    loss: str = "mlm_loss",
    named: str = "masked-LM loss",
    also: Mapping[str, str] = {},
    unigram_entropy_nats: Optional[float] = None,
) -> str:
    """Plots training loss (raw and smoothed) and held-out loss, in nats, by weight update to a PNG.

    `loss` is its key in `metrics`, `named` its name; `also` has the keys and names of other losses. Returns
    words about it for the run's last line: a picture that can't be made is no reason to fail, and named.
    """
    try:
        _plot(metrics, picture, {loss: named, **also}, unigram_entropy_nats)
    except (ImportError, OSError, TrainingError) as error:
        print(f"warning: the plot {picture} can't be made: {error}", file=sys.stderr)
        return "no plot"
    return f"plot {picture}"


def _plot(
    metrics: Path, picture: Path, losses: Mapping[str, str], unigram_entropy_nats: Optional[float]
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    records = read_metrics(metrics)
    first, *others = losses
    heights = [3, *(1 for _ in others)]
    figure, rows = pyplot.subplots(
        len(losses),
        sharex=True,
        squeeze=False,
        figsize=(8, 4 + 1.5 * len(losses)),
        constrained_layout=True,
        gridspec_kw={"height_ratios": heights},
    )
    for axes, (key, name) in zip(rows[:, 0], losses.items()):
        trained = [(int(r["step"]), float(r[key])) for r in records if r.get(key) is not None]
        evaluated = [
            (int(r["step"]), float(r[f"eval_{key}"])) for r in records if r.get(f"eval_{key}") is not None
        ]
        if trained:
            steps, values = zip(*trained)
            axes.plot(steps, values, lw=0.6, alpha=0.3, color="C0", label="training")
            axes.plot(steps, smoothed(values), lw=1.4, color="C0", label="training, smoothed")
        if evaluated:
            axes.plot(*zip(*evaluated), "o-", color="C1", label="held-out")
        if key == first and unigram_entropy_nats is not None:
            axes.axhline(
                unigram_entropy_nats, color="grey", ls="--", label="unigram entropy of the validation set"
            )
        axes.set(ylabel=f"{name} (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
    title = losses[first]
    rows[0, 0].set(title=title[:1].upper() + title[1:])
    rows[-1, 0].set(xlabel="weight updates")
    rows[-1, 0].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    data.files.write_atomically(picture, content.getvalue())
    pyplot.close(figure)


def smoothed(values: Sequence[float]) -> List[float]:
    """Each value's mean with its predecessors, over a fiftieth of all of them."""
    width = max(1, len(values) // 50)
    means, total = [], 0.0
    for number, value in enumerate(values):
        total += value - (values[number - width] if number >= width else 0.0)
        means.append(total / min(number + 1, width))
    return means
