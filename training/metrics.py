"""Metrics from the device's outputs.

Outputs come in the order of `model.PRETRAINING_OUTPUTS`:
loss, mlm_loss, nsp_loss (means of a micro batch), mlm_correct, mlm_count, nsp_correct, nsp_count.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, TextIO

import torch

from .errors import TrainingError

Record = Dict[str, float]
_REMEDY = "Repair the file or move it away: the run then continues without its earlier records"


def training_metrics(outputs: Sequence[torch.Tensor], micro_batches_per_replica: int) -> Record:
    """Metrics of one executor call under `OutputMode.Sum`.

    Each output has shape [] or [replicas]: the sum over a replica's micro batches. Losses are means over all
    micro batches (what the optimiser saw); accuracies are over all predictions.
    """
    sums = [output.double().sum().item() for output in outputs]
    replicas = outputs[0].numel()
    loss, mlm_loss, nsp_loss = (value / (micro_batches_per_replica * replicas) for value in sums[:3])
    return {
        "loss": loss,
        "mlm_loss": mlm_loss,
        "nsp_loss": nsp_loss,
        "mlm_accuracy": _ratio(sums[3], sums[4]),
        "nsp_accuracy": _ratio(sums[5], sums[6]),
    }


def mean_loss(outputs: Sequence[torch.Tensor], micro_batches_per_replica: int) -> Record:
    """The mean of the first output, the loss: the only training metric of fine-tuning."""
    return {"loss": outputs[0].double().mean().item() / micro_batches_per_replica}


class EvaluationMetrics:
    """Exact means over a whole validation set, independent of how it is split into micro batches."""

    def __init__(self) -> None:
        self._mlm_loss = self._nsp_loss = 0.0
        self._counts = [0.0, 0.0, 0.0, 0.0]

    def add(self, outputs: Sequence[torch.Tensor]) -> None:
        """Adds one call under `OutputMode.All`: each output has shape [] or [micro batches]."""
        _, mlm_loss, nsp_loss, *counts = (output.double().reshape(-1) for output in outputs)
        # A micro batch's loss is the mean over its labels: weight it by their number.
        self._mlm_loss += float((mlm_loss * counts[1]).sum())
        self._nsp_loss += float((nsp_loss * counts[3]).sum())
        self._counts = [total + float(count.sum()) for total, count in zip(self._counts, counts)]

    def result(self) -> Record:
        mlm_correct, mlm_count, nsp_correct, nsp_count = self._counts
        mlm_loss, nsp_loss = _ratio(self._mlm_loss, mlm_count), _ratio(self._nsp_loss, nsp_count)
        return {
            "eval_loss": mlm_loss + (0.0 if math.isnan(nsp_loss) else nsp_loss),
            "eval_mlm_loss": mlm_loss,
            "eval_nsp_loss": nsp_loss,
            "eval_mlm_accuracy": _ratio(mlm_correct, mlm_count),
            "eval_nsp_accuracy": _ratio(nsp_correct, nsp_count),
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, flushed after each line.

    A resumed run continues after its checkpoint's step: lines of later steps, written before a crash, are
    removed.
    """

    def __init__(self, path: Path, *, continue_from: int = -1) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= continue_from] if path.exists() else []
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        temporary.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Appends one line. Raises TrainingError if it can't be written."""
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # close() flushes the rest of the buffer
                self._file.close()
            raise TrainingError(
                f"{self._file.name} can't be written ({error.strerror}): free some disk space, then use "
                "--resume: the last checkpoint is safe"
            ) from error

    def close(self) -> None:
        self._file.close()


def plain(record: Mapping[str, Optional[float]]) -> Dict[str, Optional[float]]:
    """The record for JSON, which has no NaN: a metric without a value is null."""
    return {
        key: value if value is not None and math.isfinite(value) else None for key, value in record.items()
    }


def _line(record: Record) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"


def read_metrics(path: Path) -> List[Record]:
    """All complete lines of a `metrics.jsonl`, without a last line truncated by a crash.

    Raises TrainingError for a damaged file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is damaged: byte {error.start} isn't UTF-8 text. {_REMEDY}") from error
    return list(_whole_records(path, lines))


def _whole_records(path: Path, lines: Sequence[str]) -> Iterable[Record]:
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            return
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TrainingError(f"{path}, line {number}: not JSON ({error}). {_REMEDY}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), (int, float)):
            raise TrainingError(f"{path}, line {number}: not a record with a step: {line[:60]!r}. {_REMEDY}")
        yield record


@dataclass(frozen=True)
class Task:
    """A task's metrics, and their form in the log.

    `measure(outputs, micro batches per replica)` returns the record of one training call; the others format
    the parts of a log line from a record with the training's or the evaluation's metrics.
    """

    measure: Callable[[Sequence[torch.Tensor], int], Record]
    training_parts: Callable[[Record], List[str]]
    evaluation_part: Callable[[Record], str]


def _pretraining_parts(record: Record) -> List[str]:
    return [
        f"loss {record['loss']:.4f} (mlm {record['mlm_loss']:.4f}, nsp {record['nsp_loss']:.4f})",
        f"mlm accuracy {record['mlm_accuracy']:.3f}",
    ]


def _pretraining_evaluation(record: Record) -> str:
    return (
        f"held-out: mlm loss {record['eval_mlm_loss']:.4f}, mlm accuracy "
        f"{record['eval_mlm_accuracy']:.3f}, nsp accuracy {record['eval_nsp_accuracy']:.3f}"
    )


def _squad_evaluation(record: Record) -> str:
    return (
        f"held-out: loss {record['eval_loss']:.4f}, exact match {record['eval_exact']:.2f}%, "
        f"F1 {record['eval_f1']:.2f}%"
    )


PRETRAINING = Task(training_metrics, _pretraining_parts, _pretraining_evaluation)
SQUAD = Task(mean_loss, lambda record: [f"loss {record['loss']:.4f}"], _squad_evaluation)


def is_evaluated(record: Record) -> bool:
    """True if the record has metrics of an evaluation."""
    return any(key.startswith("eval_") for key in record)
