"""Real trainings: kept, resumed, stopped at a target."""

import dataclasses

import pytest
from safetensors.torch import load_file

from benchmarks.trainings import Budget, digest, trained

pytestmark = pytest.mark.slow

UNLIMITED = Budget(None)


def weights(result):
    return load_file(str(max(result.folder.glob("checkpoints/step_*")) / "model.safetensors"))


def test_a_training_is_done_once(small, tmp_path):
    first = trained(small(), "first", runs=tmp_path, budget=UNLIMITED)
    stamp = (first.folder / "metrics.jsonl").stat().st_mtime_ns
    second = trained(small(log_steps=3, progress_bar=True), "second", runs=tmp_path, budget=Budget(1e-9))
    assert second.folder == first.folder
    assert (first.folder / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert second.records == first.records
    assert first.records[-1]["step"] == 6
    assert first.flops == 6 * first.flops_per_update
    assert first.samples_per_update == 2 * 3


def test_what_changes_a_result_changes_its_name(small):
    names = {digest(small(**keys)) for keys in ({}, {"seed": 2}, {"learning_rate": 1e-2}, {"eval_steps": 3})}
    assert len(names) == 4
    assert digest(small(wandb_project="other", checkpoints_to_keep=9)) == digest(small())


def test_nothing_starts_without_budget(small, tmp_path):
    assert trained(small(), "x", runs=tmp_path, budget=Budget(1e-9)) is None
    assert list(tmp_path.iterdir()) == []


class _SpentAfterUpdates(Budget):
    """Is spent once a training has come so far: a stop that no clock decides."""

    def __init__(self, runs, updates):
        super().__init__(None)
        self.runs, self.updates = runs, updates

    @property
    def is_spent(self):
        return any(len(path.read_text().splitlines()) > self.updates for path in self.runs.rglob("*.jsonl"))


def test_a_training_that_the_budget_stopped_goes_on_to_the_same_weights(small, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.trainings.LOOK_EVERY_S", 0.02)
    config = small(training_steps=100, eval_steps=None)
    assert trained(config, "x", runs=tmp_path / "a", budget=_SpentAfterUpdates(tmp_path / "a", 5)) is None
    (folder,) = (tmp_path / "a").iterdir()
    stopped_at = max(int(path.name[-8:]) for path in folder.glob("checkpoints/step_*"))
    assert 5 <= stopped_at < 100
    resumed = trained(config, "x", runs=tmp_path / "a", budget=UNLIMITED)
    whole = trained(config, "x", runs=tmp_path / "b", budget=UNLIMITED)
    assert resumed.validation_loss == whole.validation_loss
    assert weights(resumed).keys() == weights(whole).keys()
    assert all(tensor.equal(weights(whole)[name]) for name, tensor in weights(resumed).items())


def test_a_target_ends_a_training(small, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.trainings.LOOK_EVERY_S", 0.02)
    config = small(training_steps=5000, eval_steps=2)
    result = trained(config, "x", runs=tmp_path, budget=UNLIMITED, target_loss=100.0)
    assert result.records[-1]["step"] < 5000
    assert result.evaluations[0]["eval_mlm_loss"] <= 100.0
    # It isn't taken for the whole training.
    assert trained(config, "x", runs=tmp_path, budget=Budget(1e-9)) is None


def test_divergence_is_a_result(small, tmp_path):
    config = small(learning_rate=1e30, optimizer="sgd", training_steps=4)
    result = trained(config, "x", runs=tmp_path, budget=UNLIMITED)
    assert result.has_diverged
    assert result.validation_loss != result.validation_loss
    again = trained(config, "x", runs=tmp_path, budget=Budget(1e-9))
    assert again.has_diverged


def test_host_seconds_are_those_of_updates(small, tmp_path):
    result = trained(small(), "x", runs=tmp_path, budget=UNLIMITED)
    slow = dataclasses.replace(
        result, records=[{"step": 0}, *({"step": step, "samples_per_s": 3.0} for step in (1, 2, 3))]
    )
    assert slow.host_s() == pytest.approx(3 * 6 / 3.0)
    assert slow.host_s(until_step=2) == pytest.approx(2 * 6 / 3.0)
