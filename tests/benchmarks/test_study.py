"""What a study computes from its trainings, and one study from trainings to files."""

from pathlib import Path

import pytest

import config as configuration
from benchmarks import points
from benchmarks.points import SCALES
from benchmarks.study import MeasuredSpot, Spot, between, paired_difference
from benchmarks.trainings import Trained
from run_benchmark import main

pytestmark = pytest.mark.slow

BASE = configuration.load("demo", path=SCALES)


def test_between_two_sizes_the_line_is_straight_in_log_flops():
    line = [(1e12, 6.0), (1e14, 4.0), (1e10, 7.0)]
    assert between(1e13, line) == pytest.approx(5.0, abs=1e-12)
    assert between(1e11, line) == pytest.approx(6.5, abs=1e-12)
    assert between(1e14, line) == pytest.approx(4.0, abs=1e-12)
    assert between(1e9, line) is None
    assert between(2e14, line) is None


def test_differences_are_paired_by_seed():
    def measured(losses):
        return MeasuredSpot(
            Spot("x", points.bert(), (64, 2)),
            {
                seed: Trained(BASE, Path(), [{"step": 1, "eval_mlm_loss": loss}], 6.0)
                for seed, loss in losses.items()
            },
        )

    # The seeds differ by far more than the two models do.
    mean, half_width = paired_difference(measured({1: 5.0, 2: 9.0, 3: 4.0}), measured({1: 5.5, 2: 9.5}))
    assert mean == -0.5
    assert half_width == 0.0


def test_a_training_that_diverged_counts_in_no_mean():
    diverged = Trained(BASE, Path(), [], float("nan"), has_diverged=True)
    good = Trained(BASE, Path(), [{"step": 1, "eval_mlm_loss": 5.0}], 6.0)
    measured = MeasuredSpot(Spot("x", points.bert(), (64, 2)), {1: diverged, 2: good})
    assert measured.diverged == 1
    assert measured.mean() == (5.0, None)


def test_a_study_from_trainings_to_its_table(corpus, device, tmp_path):
    words = f"pareto --corpus {corpus} --validation-fraction 0.3 --training-steps 2 --lr-warmup 1 --seeds 1"
    words += f" --eval-steps 2 --eval-batches 1 --device simulator --cache-folder {tmp_path / 'cache'}"
    result = main([*words.split(), "--output", str(tmp_path / "out")])
    assert [row["name"] for row in result.rows] == [
        *("BERT 2x32", "BERT 2x64", "BERT 4x64", "GroupBERT 2x32", "GroupBERT 2x64")
    ]
    for row in result.rows:
        assert row["losses"] == {str(BASE.seed): row["loss"]}
        assert row["loss_half_width"] is None  # of a single seed
    line = [(row["flops"], row["loss"]) for row in result.rows[:3]]
    for row in result.rows[3:]:
        assert row["against_line"] == row["loss"] - between(row["flops"], line)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"runs", "pareto.json", "pareto.csv", "pareto.png"}
