"""GLUE's official metrics (Wang et al. 2018), from classes or numbers; all are fractions, not percents."""

from __future__ import annotations

import math
from typing import Callable, Dict

import numpy as np

# predictions [N], labels [N], number of the task's classes (0 for numbers) -> the score; NaN where it isn't
# defined. Classes are integers.
Metric = Callable[[np.ndarray, np.ndarray, int], float]


def accuracy(predictions: np.ndarray, labels: np.ndarray, _classes: int) -> float:
    return float((predictions == labels).mean()) if len(labels) else math.nan


def f1(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """F1 of class 1; for a task with more classes than two, the mean over those that occur (macro)."""
    if not len(labels):
        return math.nan
    if classes <= 2:
        return _f1_of(1, predictions, labels)
    occurring = np.unique(np.concatenate([predictions, labels]))
    return float(np.mean([_f1_of(one, predictions, labels) for one in occurring]))


def _f1_of(one: int, predictions: np.ndarray, labels: np.ndarray) -> float:
    right = int(((predictions == one) & (labels == one)).sum())
    both = int((predictions == one).sum() + (labels == one).sum())
    return 2 * right / both if both else 0.0


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray, _classes: int) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004); 0 if a side has one class only."""
    if not len(labels):
        return math.nan
    size = int(max(predictions.max(), labels.max())) + 1
    confusion = np.zeros((size, size))
    np.add.at(confusion, (labels, predictions), 1.0)
    total, right = confusion.sum(), np.trace(confusion)
    predicted, given = confusion.sum(axis=0), confusion.sum(axis=1)
    covariance = right * total - predicted @ given
    spread = math.sqrt((total**2 - predicted @ predicted) * (total**2 - given @ given))
    return float(covariance / spread) if spread else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray, _classes: int) -> float:
    """Pearson's correlation; NaN if either side is constant."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (predictions, labels))
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def spearmanr(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Spearman's rank correlation; equal numbers share the mean of their ranks."""
    return pearson(_ranks(predictions), _ranks(labels), classes)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts - 1) / 2.0)[which]
    return ranks


METRICS: Dict[str, Metric] = {
    metric.__name__: metric for metric in (accuracy, f1, matthews_correlation, pearson, spearmanr)
}
