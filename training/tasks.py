"""What the loop and the log have to know about a task: its numbers, and how a person reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Sequence

import torch

from .metrics import Record, mean_loss, training_metrics


@dataclass(frozen=True)
class Task:
    """`measure(outputs, micro batches of a replica)` makes the record of one training call; the others make
    the parts of a log line, of a record that has the training's or the evaluation's numbers."""

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
    """Whether the record has numbers of an evaluation."""
    return any(key.startswith("eval_") for key in record)
