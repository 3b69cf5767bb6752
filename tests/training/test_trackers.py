"""Metrics in TensorBoard and in W&B: the values, resumption, and nothing but one line each in the output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.metrics import GLUE
from training.metrics_file import read_metrics
from training.report import Reporter, plot_loss


def reporter(output: Path, *trackers: str, keep_until: int = -1) -> Reporter:
    return Reporter(
        output,
        task=GLUE,
        start_step=max(keep_until, 0),
        keep_until=keep_until,
        earlier=None,
        total_steps=9,
        log_steps=100,
        progress_bar=False,
        trackers=trackers,
        wandb_project="test",
        config={"learning_rate": 0.1, "layers_per_ipu": [1, 1]},
    )


def write(output: Path, steps: range, *trackers: str, keep_until: int = -1, base: float = 0.0) -> None:
    made = reporter(output, *trackers, keep_until=keep_until)
    for step in steps:
        record = {"step": step, "loss": base + step, "learning_rate": 0.1, "samples_per_s": 1.0}
        made.write({**record, "eval_f1": step / 10} if step % 2 else record)
    made.close()


def test_tensorboard_has_every_metric_of_a_resumed_run_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, range(5), "tensorboard")
    write(tmp_path, range(3, 6), "tensorboard", keep_until=2, base=100.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("training/loss")]
    assert losses == [(0, 0), (1, 1), (2, 2), (3, 103), (4, 104), (5, 105)]
    assert [event.step for event in events.Scalars("evaluation/f1")] == [1, 3, 5]
    assert f"TensorBoard: tensorboard --logdir {tmp_path / 'tensorboard'}" in capsys.readouterr().out


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"needs the package tensorboard .*pip install tensorboard"):
        reporter(tmp_path, "tensorboard")


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named once and gets no more; metrics.jsonl has everything."""
    writer = pytest.importorskip("torch.utils.tensorboard")
    pytest.importorskip("tensorboard")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.SummaryWriter, "add_scalar", full)
    write(tmp_path, range(4), "tensorboard")
    assert capsys.readouterr().err.count("warning: TensorBoard failed (OSError: [Errno 28]") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_a_plot_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path, range(2))
    (tmp_path / "loss.png").mkdir()
    assert plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", loss="loss") == "no plot"
    assert f"warning: the plot {tmp_path / 'loss.png'} can't be made" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_says_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write(tmp_path, range(2), "wandb")
    out, err = capfd.readouterr()
    lines = [line for line in (out + err).splitlines() if line and "step" not in line.split()]
    assert len(lines) == 1 and lines[0].startswith("W&B: run ") and "wandb sync" in lines[0]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
