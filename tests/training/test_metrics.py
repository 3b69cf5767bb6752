"""Metrics against sums done by hand; the metrics file after a crash."""

import json
import math
from pathlib import Path

import pytest
import torch

from training.errors import TrainingError
from training.metrics import EvaluationMetrics, training_metrics
from training.metrics_file import MetricsFile, plain, read_metrics

# Micro batches: loss, mlm_loss, nsp_loss, mlm_correct, mlm_count, nsp_correct, nsp_count
MICRO_BATCHES = [(5.0, 4.0, 1.0, 3, 10, 1, 2), (3.0, 2.5, 0.5, 4, 5, 2, 2), (9.0, 8.0, 1.0, 0, 1, 0, 1)]


def columns(rows):
    return [torch.tensor(column, dtype=torch.float32) for column in zip(*rows)]


def test_training_losses_are_means_over_micro_batches_and_accuracies_over_predictions():
    # Two replicas; each saw all three micro batches, summed on the device.
    outputs = [torch.stack([column.sum(), column.sum()]) for column in columns(MICRO_BATCHES)]
    metrics = training_metrics(outputs, micro_batches_per_replica=3)
    assert metrics["loss"] == pytest.approx(17 / 3)
    assert metrics["loss"] == pytest.approx(metrics["mlm_loss"] + metrics["nsp_loss"])
    assert metrics["mlm_accuracy"] == pytest.approx(7 / 16)
    assert metrics["nsp_accuracy"] == pytest.approx(3 / 5)


def test_one_replica_gives_scalars():
    outputs = [column.sum() for column in columns(MICRO_BATCHES)]
    assert training_metrics(outputs, 3)["mlm_loss"] == pytest.approx(14.5 / 3)


def test_evaluation_weighs_each_micro_batch_by_its_labels():
    evaluation = EvaluationMetrics()
    evaluation.add(columns(MICRO_BATCHES[:2]))
    evaluation.add(columns(MICRO_BATCHES[2:]))
    evaluation.add(columns([(0.0, 0.0, 0.0, 0, 0, 0, 0)]))  # padding only
    result = evaluation.result()
    assert result["eval_mlm_loss"] == pytest.approx((4 * 10 + 2.5 * 5 + 8) / 16)
    assert result["eval_nsp_loss"] == pytest.approx((2 * 1 + 2 * 0.5 + 1) / 5)
    assert result["eval_mlm_accuracy"] == pytest.approx(7 / 16)
    assert result["eval_loss"] == pytest.approx(result["eval_mlm_loss"] + result["eval_nsp_loss"])


def test_metrics_file_continues_where_the_checkpoint_stands(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in range(6):
        file.write({"step": step, "loss": step / 3})
    file.close()
    with path.open("a") as torn:
        torn.write('{"step": 6, "lo')
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3, 4, 5]
    file = MetricsFile(path, continue_from=3)
    file.write({"step": 4, "loss": math.nan})
    file.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        *({"step": step, "loss": step / 3} for step in range(4)),
        {"step": 4, "loss": None},
    ]


def written(path, steps, **more):
    file = MetricsFile(path, **more)
    for step in steps:
        file.write({"step": step, "loss": step / 3})
    return file


def steps_in(path):
    return [record["step"] for record in read_metrics(path)]


def test_a_resumed_run_keeps_the_bytes_that_its_checkpoint_knows(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    file = written(path, range(4))
    known, content = file.sync(), path.read_bytes()
    file.write({"step": 4})
    file.close()
    written(path, [4], continue_from=3, expected=known).close()
    assert path.read_bytes()[: len(content)] == content and steps_in(path) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("damage", "kept", "words"),
    [
        (
            lambda text: text[: text.index('{"step": 2')],
            [0, 1],
            "2 readable records up to step 3; the run had written",
        ),
        (lambda text: text.replace('"loss": 0.3', '"loss": 0.7'), [0, 1, 2, 3], "isn't what the run wrote"),
        (lambda text: text.replace('{"step": 1', '"step": 1'), [0, 2, 3], "line 2: not JSON"),
        (
            lambda text: text.replace('"loss": 0.3', '"loss": {}, "x": 0.3'),
            [0, 2, 3],
            "loss is {}, not a number",
        ),
        (
            lambda text: text.replace('"step": 1', '"step": ' + "1" * 400),
            [0, 2, 3],
            "not a record with a step",
        ),
        (lambda text: "[" * 100_000 + "\n" + text, [0, 1, 2, 3], "line 1: not JSON"),
    ],
    ids=["lost lines", "changed number", "cut", "object", "huge", "nested"],
)
def test_a_damaged_file_is_named_kept_aside_and_mended(tmp_path, capsys, damage, kept, words):
    path = tmp_path / "metrics.jsonl"
    file = written(path, range(4))
    known = file.sync()
    file.close()
    path.write_text(damage(path.read_text()))
    found = path.read_bytes()
    written(path, [], continue_from=3, expected=known).close()
    assert steps_in(path) == kept
    assert words in capsys.readouterr().err
    assert (tmp_path / "metrics_damaged.jsonl").read_bytes() == found


def test_a_missing_file_is_told(tmp_path, capsys):
    written(tmp_path / "metrics.jsonl", [5], continue_from=4).close()
    assert "is missing: the run continues without its earlier records" in capsys.readouterr().err


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda path: path.replace(path.with_name("moved")),
        lambda path: path.with_name("other").replace(path),
    ],
    ids=["removed", "moved", "replaced"],
)
def test_a_file_that_goes_under_the_run_is_written_again(tmp_path, capsys, harm):
    path = tmp_path / "metrics.jsonl"
    (tmp_path / "other").write_text("not ours")
    file = written(path, range(3))
    harm(path)
    file.write({"step": 3})
    assert file.sync()["bytes"] == path.stat().st_size
    file.write({"step": 4})
    file.close()
    assert steps_in(path) == [0, 1, 2, 3, 4]
    assert "removed or changed under the run" in capsys.readouterr().err


def test_a_link_in_place_of_the_file_is_replaced_not_followed(tmp_path):
    path, victim = tmp_path / "metrics.jsonl", tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim)
    written(path, [0]).close()
    assert victim.read_text() == "mine" and steps_in(path) == [0]


def test_a_metric_without_value_is_null():
    assert plain({"a": math.nan, "b": None, "c": -math.inf, "d": 2}) == {
        "a": None,
        "b": None,
        "c": None,
        "d": 2,
    }


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    MetricsFile(path).close()
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nonsense", "line 2: not JSON"),
        (b"[1]", "line 2: not a record with a step"),
        (b'{"loss": 1}', "line 2: not a record with a step"),
        (b"\xff", "line 2: not JSON .*utf-8"),
        (b'{"step": 1, "loss": {}}', "line 2: loss is {}"),
        (b'{"step": true}', "line 2: not a record with a step"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, words):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 1}\n')
    with pytest.raises(TrainingError, match=words):
        read_metrics(path)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    opened, path = Path.open, tmp_path / "metrics.jsonl"
    monkeypatch.setattr(
        Path, "open", lambda file, *more, **named: opened(full if file == path else file, *more, **named)
    )
    file = MetricsFile(path)
    with pytest.raises(TrainingError, match=r"metrics.jsonl can't be written \(No space left"):
        file.write({"step": 1})
    file.close()
