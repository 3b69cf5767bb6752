"""Evaluation of a classifier or a regression: gathers the outputs of all examples, then scores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence

import numpy as np
import torch

import ipu
import model as models
from data.glue import METRICS, GlueDataset, GlueTask, PreparedExamples

from .errors import DivergenceError
from .evaluation import Evaluator
from .fine_tuning import validation_evaluator
from .metrics_file import Record

if TYPE_CHECKING:
    from config import Config


class Classifying:
    """Gathers a model's outputs on the examples, in order.

    After `result`, `outputs` is float [examples, classes], and `is_whole` is true if every example was
    evaluated. Rows after the last example are padding and change neither loss nor scores.
    """

    def __init__(self, prepared: PreparedExamples, task: GlueTask) -> None:
        self.outputs = np.zeros((0, 1), dtype=np.float32)
        self.is_whole = False
        self._prepared, self._task = prepared, task
        self._losses: List[np.ndarray] = []
        self._logits: List[np.ndarray] = []

    def add(self, outputs: Sequence[torch.Tensor]) -> None:
        """Adds one call under `OutputMode.All`: losses [] or [micro batches], logits [rows, classes]."""
        losses, logits = (output.float().cpu().numpy() for output in outputs)
        self._losses.append(losses.reshape(-1))
        self._logits.append(logits)

    def result(self) -> Record:
        """eval_loss, the mean over examples, and the task's metrics; empty if the examples have no labels.

        The names of the metrics of a second part, such as MNLI's mismatched, end in its name. Raises
        DivergenceError for logits that are NaN or infinite.
        """
        examples = self._prepared.examples
        self.outputs = np.concatenate(self._logits)[: len(examples.examples)]
        if not np.isfinite(self.outputs).all():
            raise DivergenceError(
                "the model's logits are NaN or infinite: its weights are unusable. Use an earlier "
                "checkpoint, or train again with a lower learning_rate or, in float16, another loss_scaling"
            )
        count = len(self.outputs)
        self.is_whole = count == len(examples.examples)
        if not examples.is_labelled:
            return {}
        labels = self._prepared.features.labels[:count]
        predictions = self.outputs.argmax(axis=1) if examples.classes else self.outputs[:, 0]
        parts = np.array([example.part for example in examples.examples[:count]])
        record: Record = {"eval_loss": self._loss(count)}
        for number, part in enumerate(dict.fromkeys(parts.tolist())):
            here = parts == part
            for name in self._task.metrics:
                value = METRICS[name](predictions[here], labels[here], len(examples.classes))
                record[f"eval_{name}" + (f"_{part}" if number else "")] = value
        return record

    def _loss(self, count: int) -> float:
        losses = np.concatenate(self._losses).astype(np.float64)
        rows = len(self._logits) * len(self._logits[0]) // len(losses)  # rows of a micro batch
        real = np.clip(count - np.arange(len(losses)) * rows, 0, rows)
        return float((losses * real).sum() / count)


class ClassExaminer:
    """Evaluates models on one set of examples; `latest` is the most recently started evaluation."""

    def __init__(
        self, config: Config, prepared: PreparedExamples, device: ipu.DeviceChoice, task: GlueTask
    ) -> None:
        self.latest: Optional[Classifying] = None
        self._config, self._prepared, self._device, self._task = config, prepared, device, task

    def while_training(self, trained: models.TaskModel, executor: Any) -> Evaluator:
        """An evaluator of the model that `executor` trains, on at most `eval_batches` micro batches."""
        return self._evaluator(trained, executor, self._config.eval_batches)

    def evaluator(self, model: models.TaskModel) -> Evaluator:
        """An evaluator of `model` on all examples."""
        return self._evaluator(model, None, None)

    def _evaluator(
        self, model: models.TaskModel, executor: Optional[Any], max_batches: Optional[int]
    ) -> Evaluator:
        return validation_evaluator(
            self._config,
            model,
            executor,
            GlueDataset(self._prepared.features, seed=0, shuffle=False),
            device=self._device,
            max_batches=max_batches,
            metrics=self._begin,
        )

    def _begin(self) -> Classifying:
        self.latest = Classifying(self._prepared, self._task)
        return self.latest
