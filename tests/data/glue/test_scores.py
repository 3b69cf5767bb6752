"""GLUE's metrics against torchmetrics, on random and degenerate predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional as reference

from data.glue import METRICS
from data.glue.tasks import GLUE_TASKS


def drawn(classes: int, seed: int) -> tuple:
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=50)
    predictions = np.where(random.random(50) < 0.6, labels, random.integers(classes, size=50))
    return predictions, labels


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_classes(classes: int, seed: int) -> None:
    predictions, labels = drawn(classes, seed)
    names = ("accuracy", "f1", "matthews_correlation")
    ours = {name: METRICS[name](predictions, labels, classes) for name in names}
    given = torch.from_numpy(predictions), torch.from_numpy(labels)
    kind = {"task": "multiclass", "num_classes": classes}
    assert ours["accuracy"] == pytest.approx(float(reference.accuracy(*given, **kind, average="micro")))
    assert ours["matthews_correlation"] == pytest.approx(float(reference.matthews_corrcoef(*given, **kind)))
    f1 = reference.f1_score(*given, **({"task": "binary"} if classes == 2 else {**kind, "average": "macro"}))
    assert ours["f1"] == pytest.approx(float(f1))


def test_f1_is_by_the_tasks_classes_not_by_those_that_occur() -> None:
    """An evaluation set of a task with three classes may have two of them."""
    predictions, labels = drawn(2, 0)
    given = torch.from_numpy(predictions), torch.from_numpy(labels)
    binary = float(reference.f1_score(*given, task="binary"))
    macro = float(reference.f1_score(*given, task="multiclass", num_classes=3, average="macro"))
    assert METRICS["f1"](predictions, labels, 2) == pytest.approx(binary)
    assert METRICS["f1"](predictions, labels, 3) == pytest.approx(macro)
    assert abs(binary - macro) > 0.01


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [0, 1, 6])  # rounded: equal numbers share a rank
def test_numbers(seed: int, digits: int) -> None:
    random = np.random.default_rng(seed)
    labels = (5 * random.random(60)).round(digits)
    predictions = (labels + random.normal(size=60)).round(digits)
    given = torch.from_numpy(predictions), torch.from_numpy(labels)
    expected = float(reference.pearson_corrcoef(*given))
    assert METRICS["pearson"](predictions, labels, 0) == pytest.approx(expected, abs=1e-6)
    ranks = float(reference.spearman_corrcoef(*given))
    assert METRICS["spearmanr"](predictions, labels, 0) == pytest.approx(ranks, abs=1e-6)


def test_where_a_metric_isnt_defined() -> None:
    ones, mixed = np.ones(4, dtype=np.int64), np.array([0, 1, 1, 0])
    assert METRICS["matthews_correlation"](ones, mixed, 0) == 0.0
    assert METRICS["f1"](0 * ones, 0 * ones, 2) == 0.0
    assert math.isnan(METRICS["pearson"](ones, mixed, 0)) and math.isnan(METRICS["spearmanr"](mixed, ones, 0))
    assert METRICS["accuracy"](mixed, mixed, 2) == METRICS["matthews_correlation"](mixed, mixed, 2) == 1.0
    nothing = np.zeros(0, dtype=np.int64)
    assert all(math.isnan(metric(nothing, nothing, 2)) for metric in METRICS.values())


def test_each_tasks_metrics_are_the_official_ones() -> None:
    """Wang et al. 2018, table 1."""
    official = {
        "cola": ("matthews_correlation",),
        "sst2": ("accuracy",),
        "mrpc": ("f1", "accuracy"),
        "stsb": ("pearson", "spearmanr"),
        "qqp": ("f1", "accuracy"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
        "ax": ("matthews_correlation",),
    }
    assert {name: GLUE_TASKS[name].metrics for name in official} == official
