"""Several instances: torchrun's processes train as replicas of one process do, and only the first writes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import command_line
import ipu
import run_pretraining
from training import Progress, StopRequest
from training.metrics_file import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# Dropout on: randomness belongs to the replica, wherever it runs.
STEPS = (
    *("--training-steps", 4, "--checkpoint-steps", 2, "--eval-steps", 2, "--eval-batches", 5),
    *("--replication-factor", 2, "--device-iterations", 2, "--hidden-dropout", 0.1),
)


# Runs, one after another in one process, which imports everything once.
RUNS = "import json, sys, run_pretraining\nfor run in json.loads(sys.argv[1]): run_pretraining.main(run)\n"


def torchrun(*runs, folder):
    """The finished process; its two instances, which print to its stdout, make the runs."""
    script = folder / "runs.py"
    script.write_text(RUNS, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(script), json.dumps(runs)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_close(one, other, step):
    for name in ("model.safetensors", "optimizer.safetensors"):
        left, right = (
            load_file(str(run / "checkpoints" / f"step_{step:08d}" / name)) for run in (one, other)
        )
        assert left.keys() == right.keys()
        for key in left:
            torch.testing.assert_close(left[key], right[key], rtol=0, atol=1e-6, msg=key)
    for left, right in zip(*(read_metrics(run / "metrics.jsonl") for run in (one, other)), strict=True):
        assert left.keys() == right.keys()
        for key in set(left) - {"samples_per_s", "packs_per_s"}:
            assert left[key] == pytest.approx(right[key], abs=1e-6), key


def test_two_instances_train_as_two_replicas_and_resume(tmp_path, flags):
    run_pretraining.main(flags(tmp_path / "one", *STEPS))
    arguments = flags(tmp_path / "two", *STEPS)
    result = torchrun(arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert said[0].startswith("device: simulator") and "instances: 2, sharing 2 replicas" in said
    assert sum(line.startswith("device:") for line in said) == 1
    assert sum(line.startswith("done:") for line in said) == 1
    assert_close(tmp_path / "one", tmp_path / "two", 4)

    # Both go on from the checkpoint, also in another number of instances; packed data are shared alike.
    packed = ("--training-steps", 2, "--eval-steps", 2, *STEPS[2:4], *STEPS[6:])
    run_pretraining.main(flags(tmp_path / "packed", *packed, config="test_packed"))
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_00000004")
    in_two = flags(tmp_path / "packed in two", *packed, config="test_packed")
    resumed = torchrun([*arguments, "--resume"], in_two, folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_close(tmp_path / "one", tmp_path / "two", 4)
    assert_close(tmp_path / "packed", tmp_path / "packed in two", 2)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_00000004")
    run_pretraining.main([*arguments, "--resume"])
    assert_close(tmp_path / "one", tmp_path / "two", 4)


@pytest.mark.parametrize(
    ("launcher", "python"),
    [
        ("torchrun --nproc_per_node 2", []),
        ("poprun --num-instances 2 --num-replicas 4 --ipus-per-replica 4", [sys.executable]),
    ],
)
def test_what_started_a_stopped_run_starts_it_again(capsys, launcher, python):
    stop = StopRequest()
    stop.signal_name = "SIGTERM"
    end = Progress(3, {}, evaluation_due=False, checkpoint=Path("run/checkpoints/step_00000003"))
    instances = ipu.Instances(0, 2, launched=True, launcher=launcher)
    command_line.say_how_to_go_on("run.py", end, stop, ["--config", "demo", "--checkpoint", "a"], instances)
    lead, _, command = capsys.readouterr().out.splitlines()[-1].partition(": ")
    assert lead == f"to resume, with {launcher.split()[0]}'s other flags as before"
    assert shlex.split(command) == [*launcher.split(), *python, "run.py", "--config", "demo", "--resume"]


def test_replicas_that_instances_cannot_share_are_refused(tmp_path, flags, monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    words = ("--training-steps", 1, "--replication-factor", 3, "--target", "pod16")
    arguments = flags(tmp_path / "run", *words)
    assert command_line.run_as_program(lambda _: run_pretraining.main(arguments)) == 2
    said = capsys.readouterr().err
    assert "replication_factor 3 can't be split equally among 2 instances: start 1 of them" in said
    assert "Traceback" not in said
