"""Two runs: the same, or the first step, key and weight that differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training import save_checkpoint
from training.compare import main
from training.metrics_file import MetricsFile

ROOT = Path(__file__).resolve().parents[2]


def made(output, *, loss=0.5, weight=1.0, config=None, threads=1, steps=(1, 2, 3), speed=9.0):
    """A run with a checkpoint at step 2, in which `loss` is that of step 2."""

    def save_model(folder):
        (folder / "config.json").write_text("{}")
        save_file({"a": torch.zeros(3), "b": torch.tensor([weight])}, str(folder / "model.safetensors"))

    output.mkdir()
    file = MetricsFile(output / "metrics.jsonl")
    for step in steps:
        file.write({"step": step, "loss": loss if step == 2 else 0.25, "samples_per_s": speed})
    file.close()
    save_checkpoint(
        output,
        2,
        save_model=save_model,
        optimizer_state={"ipu_state": {}, "ipu_param": {}},
        state={
            "config": config or {"seed": 1, "log_steps": 1},
            "rng_state": [1],
            "host_threads": threads,
            "progress": {"record": {"step": 2}, "evaluation_due": False},
        },
    )
    return str(output)


def test_the_same_but_for_speed_and_what_alters_nothing(tmp_path, capsys):
    runs = (
        made(tmp_path / "a"),
        made(tmp_path / "b", speed=3.0, config={"seed": 1, "log_steps": 5}, steps=(2, 3, 4)),
    )
    assert main(runs) == 0
    assert capsys.readouterr().out.splitlines() == [
        "compared: 2 records, 1 checkpoints that both runs have",
        "the runs are the same",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": 0.75}, "step 2: loss is 0.5 and 0.75"),
        ({"weight": 1.5}, "checkpoint of step 2: model.safetensors: b differs by up to 0.5"),
        ({"weight": 1.0 + 2**-23}, "model.safetensors: b differs by up to 1.19e-07"),
        (
            {"loss": 1.0, "config": {"seed": 2, "log_steps": 1}},
            "other settings: configuration: seed is 1 and 2",
        ),
        ({"loss": 1.0, "threads": 4}, "other settings: host threads: 1 and 4"),
    ],
)
def test_the_first_difference_is_named(tmp_path, capsys, change, words):
    assert main([made(tmp_path / "a"), made(tmp_path / "b", **change)]) == 1
    assert words in capsys.readouterr().out


def test_other_settings_alone_make_no_difference(tmp_path, capsys):
    runs = [made(tmp_path / "a"), made(tmp_path / "b", threads=4)]
    assert main(runs) == 0
    assert "the runs are the same\nother settings: host threads: 1 and 4" in capsys.readouterr().out


def test_nothing_in_common_and_damage_are_errors(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    run = made(tmp_path / "a")
    assert main([run, str(tmp_path / "empty")]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    (tmp_path / "a" / "metrics.jsonl").write_text(json.dumps({"loss": 1}) + "\n")
    assert main([run, made(tmp_path / "b")]) == 2
    assert "not a record with a step" in capsys.readouterr().err


def test_it_is_a_program(tmp_path):
    runs = made(tmp_path / "a"), made(tmp_path / "b", loss=2.0)
    done = subprocess.run(
        [sys.executable, "-m", "training.compare", *runs],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "differs: step 2: loss is 0.5 and 2.0" in done.stdout, done.stderr
