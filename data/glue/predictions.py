"""Predictions on a test set: the leaderboard's TSV files and a JSON object a line."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Sequence

import numpy as np

from .files import ExampleSet
from .tasks import GlueTask


def leaderboard_files(
    examples: ExampleSet, outputs: np.ndarray, task: GlueTask, classes: Sequence[str]
) -> Dict[str, str]:
    """The content of each file that gluebenchmark.com takes, by name: a header, then index and prediction.

    `outputs` is float [N, classes], or [N, 1] in a regression, where predictions are limited to 0 to 5 as
    labels are. Classes are numbers in the task's order, or names. One's own data has its ids for an index.
    """
    lines: Dict[str, List[str]] = {}
    for example, given in zip(examples.examples, predicted(outputs, classes)):
        if not classes:
            shown = f"{min(5.0, max(0.0, float(given))):.3f}" if task.columns else f"{float(given):.6g}"
        elif task.numbered:
            shown = str([name.lower() for name in task.classes].index(str(given).lower()))
        else:
            shown = str(given)
        name = f"{task.leaderboard[example.part]}.tsv"
        rows = lines.setdefault(name, ["index\tprediction"])
        # The published sets are numbered from 0, in the files' order.
        index = str(len(rows) - 1) if task.columns else example.id
        rows.append(f"{_one_cell(index)}\t{_one_cell(shown)}")
    return {name: "\n".join(rows) + "\n" for name, rows in lines.items()}


def prediction_lines(examples: ExampleSet, outputs: np.ndarray, classes: Sequence[str]) -> str:
    """A JSON object a line: id, texts, prediction and, for classes, the probability of each."""
    rows = []
    for example, given, scores in zip(examples.examples, predicted(outputs, classes), outputs):
        row = {"id": example.id, "texts": list(example.texts), "prediction": given}
        if classes:
            row["probabilities"] = dict(zip(classes, (round(float(p), 6) for p in softmax(scores))))
        rows.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(rows) + "\n"


def predicted(outputs: np.ndarray, classes: Sequence[str]) -> List[Any]:
    """The name of the most likely class, or the number, of each row."""
    if not classes:
        return [float(value) for value in outputs[:, 0]]
    return [classes[number] for number in outputs.argmax(axis=1).tolist()]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    wide = np.exp(np.asarray(scores, dtype=np.float64) - np.max(scores, axis=-1, keepdims=True))
    result: np.ndarray = wide / wide.sum(axis=-1, keepdims=True)
    return result


def _one_cell(text: str) -> str:
    return " ".join(text.split())
