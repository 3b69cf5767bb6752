"""Evaluation on SQuAD: gathers the logits of all windows, then finds answers and scores them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import numpy as np
import torch

import ipu
import model as models
from data.squad import (
    Answered,
    AnswerKeys,
    PreparedQuestions,
    QuestionSet,
    SquadDataset,
    best_thresholds,
    evaluate,
    find_answers,
)

from .errors import DivergenceError
from .evaluation import Evaluator
from .fine_tuning import validation_evaluator
from .metrics_file import Record

if TYPE_CHECKING:
    from config import Config


class Answering:
    """Gathers a model's outputs on the windows of questions, in order.

    After `result`, `answered` has the answers, and `is_whole` is true if every window was evaluated. Rows
    after the last window are padding and change neither loss nor scores.
    """

    def __init__(self, prepared: PreparedQuestions, options: AnswerKeys) -> None:
        self.answered: List[Answered] = []
        self.is_whole = False
        self._data, self._features, self._options = prepared.questions, prepared.features, options
        self._losses: List[np.ndarray] = []
        self._logits: List[Sequence[np.ndarray]] = []

    def add(self, outputs: Sequence[torch.Tensor]) -> None:
        """Adds one call under `OutputMode.All`: losses [] or [micro batches], logits [rows, S] twice."""
        losses, *logits = (output.float().cpu().numpy() for output in outputs)
        self._losses.append(losses.reshape(-1))
        self._logits.append(logits)

    def result(self) -> Record:
        """eval_loss, the mean over windows, and the scores of `evaluate`, their names prefixed with eval_.

        Empty if the questions have no reference answers. Raises DivergenceError for logits that are NaN or
        infinite.
        """
        starts, ends = (np.concatenate(parts)[: len(self._features)] for parts in zip(*self._logits))
        if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
            raise DivergenceError(
                "the model's logits are NaN or infinite: its weights are unusable. Use an earlier "
                "checkpoint, or train again with a lower learning_rate or, in float16, another loss_scaling"
            )
        self.answered = find_answers(self._data, self._features, starts, ends, self._options)
        self.is_whole = len(starts) == len(self._features)
        if not any(question.answers or question.is_impossible for question in self._data.questions):
            return {}
        scores = score(self._data, self.answered)
        return {"eval_loss": self._loss(len(starts)), **{f"eval_{key}": scores[key] for key in scores}}

    def _loss(self, windows: int) -> float:
        losses = np.concatenate(self._losses).astype(np.float64)
        rows = len(self._logits) * len(self._logits[0][0]) // len(losses)  # rows of a micro batch
        real = np.clip(windows - np.arange(len(losses)) * rows, 0, rows)
        return float((losses * real).sum() / windows)


def score(data: QuestionSet, answered: Sequence[Answered]) -> Record:
    """The scores of `evaluate` on the answered questions; in version 2.0 also those of `best_thresholds`.

    NaN for a group without questions.
    """
    questions = replace(data, questions=tuple(one.question for one in answered))
    scores: Dict[str, Any] = evaluate(questions, {one.question.id: one.text for one in answered})
    if data.has_impossible:
        best_texts = {one.question.id: one.best_text for one in answered}
        odds = {one.question.id: _number(one.null_odds) for one in answered}
        scores.update(best_thresholds(questions, best_texts, odds))
    return {key: _number(value) for key, value in scores.items()}


def _number(value: Optional[float]) -> float:
    return math.nan if value is None else value


class Examiner:
    """Evaluates models on one set of questions; `latest` is the most recently started evaluation.

    It evaluates a copy of the model, placed on the device by the configuration's validation_ keys,
    independently of training.
    """

    def __init__(self, config: Config, prepared: PreparedQuestions, device: ipu.DeviceChoice) -> None:
        self.latest: Optional[Answering] = None
        self._config, self._prepared, self._device = config, prepared, device

    def while_training(self, trained: models.TaskModel, executor: Any) -> Evaluator:
        """An evaluator of the model that `executor` trains, on at most `eval_batches` micro batches."""
        return self._evaluator(trained, executor, self._config.eval_batches)

    def evaluator(self, model: models.TaskModel) -> Evaluator:
        """An evaluator of `model` on all questions."""
        return self._evaluator(model, None, None)

    def _evaluator(
        self, model: models.TaskModel, executor: Optional[Any], max_batches: Optional[int]
    ) -> Evaluator:
        return validation_evaluator(
            self._config,
            model,
            executor,
            SquadDataset(self._prepared.features, seed=0, shuffle=False),
            device=self._device,
            max_batches=max_batches,
            metrics=self._begin,
        )

    def _begin(self) -> Answering:
        self.latest = Answering(self._prepared, self._config.section(AnswerKeys))
        return self.latest
