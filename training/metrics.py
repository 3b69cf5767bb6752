"""Metrics from the device's outputs.

Outputs come in the order of `model.PRETRAINING_OUTPUTS`:
loss, mlm_loss, nsp_loss (means of a micro batch), mlm_correct, mlm_count, nsp_correct, nsp_count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Callable, List, Optional, Sequence

import torch

from .metrics_file import Record


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


@dataclass(frozen=True)
class Task:
    """A task's metrics, and their form in the log.

    `measure(outputs, micro batches per replica)` returns the record of one training call; the others format
    the parts of a log line from a record with the training's or the evaluation's metrics.

    `sequences(outputs)` counts the sequences of a call; None: one in each row of the batch.
    """

    measure: Callable[[Sequence[torch.Tensor], int], Record]
    training_parts: Callable[[Record], List[str]]
    evaluation_part: Callable[[Record], str]
    sequences: Optional[Callable[[Sequence[torch.Tensor]], float]] = None


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


def _glue_evaluation(record: Record) -> str:
    scores = [f"{name[len('eval_') :]} {record[name]:.4f}" for name in record if name.startswith("eval_")]
    return f"held-out: {', '.join(scores)}"


PRETRAINING = Task(training_metrics, _pretraining_parts, _pretraining_evaluation)
# Packed rows have one next sentence label for each sequence.
PACKED_PRETRAINING = replace(PRETRAINING, sequences=lambda outputs: outputs[6].double().sum().item())
SQUAD = Task(mean_loss, lambda record: [f"loss {record['loss']:.4f}"], _squad_evaluation)
GLUE = Task(mean_loss, lambda record: [f"loss {record['loss']:.4f}"], _glue_evaluation)


def is_evaluated(record: Record) -> bool:
    """True if the record has metrics of an evaluation."""
    return any(key.startswith("eval_") for key in record)
