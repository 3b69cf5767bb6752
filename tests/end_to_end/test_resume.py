"""A run that was killed, stopped or moved on equals one that never stopped, bit for bit."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import run_pretraining
from config import keys_that_alter
from data import DataError
from training.metrics_file import read_metrics

from .conftest import STEPS

# One process, which trains the run that others are compared with once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]

ROOT = Path(__file__).resolve().parents[2]
UNTIMED = ("samples_per_s",)


def untimed(output):
    return [
        {key: value for key, value in record.items() if key not in UNTIMED}
        for record in read_metrics(output / "metrics.jsonl")
    ]


def assert_same_run(one, other, step):
    for name in ("model.safetensors", "optimizer.safetensors"):
        tensors = [load_file(str(run / "checkpoints" / f"step_{step:08d}" / name)) for run in (one, other)]
        assert tensors[0].keys() == tensors[1].keys()
        different = [
            key
            for key in tensors[0]
            if tensors[0][key].numpy().tobytes() != tensors[1][key].numpy().tobytes()
        ]
        assert different == []
    assert untimed(one) == untimed(other)


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def signalled_at(arguments, owner, method, call, number, runner="run_pretraining", group=False):
    """Runs a runner in a process that sends itself, or its group, a signal in the n-th call of a method: no
    race."""
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from data.tokenizer import Tokenizer
from training.metrics_file import MetricsFile
from training.metrics import EvaluationMetrics
import {runner}
original, calls = {owner}.{method}, []
def signalling(self, *arguments):
    calls.append(original(self, *arguments))
    if len(calls) == {call}:
        os.kill({"0" if group else "os.getpid()"}, {int(number)})
{owner}.{method} = signalling
sys.argv[1:] = {arguments!r}
sys.exit({runner}.run_as_program())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, start_new_session=group
    )


def test_kill_9_and_resume(tmp_path, flags, reference):
    output = tmp_path / "killed"
    arguments = flags(output, *STEPS, "--dataloader-workers", 2)
    # The seventh line of metrics is that of step 6, between two checkpoints.
    killed = signalled_at(arguments, "MetricsFile", "write", 7, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [record["step"] for record in read_metrics(output / "metrics.jsonl")] == list(range(7))
    assert [path.name for path in (output / "checkpoints").glob("step_*")] == ["step_00000004"]
    result = run_pretraining.main([*arguments, "--resume"])
    assert result.step == 8
    assert_same_run(reference, output, 8)


def test_a_stopped_run_says_how_to_go_on(tmp_path, flags, program):
    output = tmp_path / "stopped"
    # More steps than it can make before the signal comes.
    steps = ("--training-steps", 1_000_000, "--eval-batches", 1, "--dataloader-workers", 1)
    process = program(flags(output, *steps))
    wait_for_lines(output / "metrics.jsonl", 3, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "SIGINT" in said
    command = next(line for line in said.splitlines() if line.startswith("to resume: ")).split(": ", 1)[1]
    words = shlex.split(command)[2:]
    saved = json.loads(next((output / "checkpoints").glob("step_*/state.json")).read_text())["step"]
    assert saved >= 2
    words[words.index("--training-steps") + 1] = str(saved + 2)
    resumed = run_pretraining.main(words)
    assert resumed.step == saved + 2
    assert [record["step"] for record in read_metrics(output / "metrics.jsonl")] == list(range(saved + 3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_stops_it_as_one(tmp_path, flags, reference, number):
    """Loader workers get it too, and go on until the run has made its checkpoint."""
    output = tmp_path / "stopped"
    arguments = flags(output, *STEPS, "--dataloader-workers", 2)
    stopped = signalled_at(arguments, "MetricsFile", "write", 3, number, group=True)
    assert stopped.returncode == 0, stopped.stderr
    assert f"stopped by {number.name} after step 2" in stopped.stdout
    run_pretraining.main([*arguments, "--resume"])
    assert_same_run(reference, output, 8)


def test_a_lost_loader_worker_is_told_without_a_traceback(tmp_path, flags):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import run_pretraining
from data.dataset import PretrainingDataset
from torch.utils.data import get_worker_info
fetch, calls = PretrainingDataset.fetch, []
def dying(self, *arguments):
    calls.append(1)
    if get_worker_info() is not None and len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return fetch(self, *arguments)
PretrainingDataset.fetch = dying
sys.argv[1:] = {flags(tmp_path / "run", *STEPS, "--dataloader-workers", 1)!r}
sys.exit(run_pretraining.run_as_program())
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "error: a DataLoader worker died (DataLoader worker" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated") / "run"


@pytest.mark.parametrize("call", [3, 15])
def test_a_stop_during_an_evaluation_is_made_good(tmp_path, flags, evaluated, call):
    """In the first evaluation, before anything was trained, and in that of step 4: ten calls each."""
    steps = (*STEPS, "--eval-batches", 30)
    if not evaluated.exists():
        run_pretraining.main(flags(evaluated, *steps))
    arguments = flags(tmp_path / "stopped", *steps)
    stopped = signalled_at(arguments, "EvaluationMetrics", "add", call, signal.SIGTERM)
    assert stopped.returncode == 0, stopped.stderr
    trained = (tmp_path / "stopped" / "checkpoints").exists()
    assert trained == (call > 10)
    run_pretraining.main([*arguments, "--resume"] if trained else arguments)
    assert_same_run(evaluated, tmp_path / "stopped", 8)


def test_a_stop_before_training_is_clean(tmp_path, flags):
    """By SIGTERM while the data is prepared, in a cache that has none yet; `tests/test_command_line.py` has
    Ctrl-C too."""
    arguments = flags(tmp_path / "run", *STEPS, "--cache-folder", tmp_path / "cache")
    stopped = signalled_at(arguments, "Tokenizer", "encode_lines", 1, signal.SIGTERM)
    assert stopped.returncode == 130, stopped.stderr
    assert "SIGTERM" in stopped.stderr and "Traceback" not in stopped.stderr
    assert (tmp_path / "run" / "resolved.yml").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_corpus_than_the_checkpoints_is_refused(tmp_path, flags, corpus, cache):
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text())
    arguments = flags(tmp_path / "run", *STEPS, "--corpus", text)
    run_pretraining.main(arguments)
    text.write_text(corpus.read_text()[:-5000])
    # What was prepared is still there: the run goes on with it.
    run_pretraining.main([*arguments, "--training-steps", "9", "--resume"])
    elsewhere = ["--cache-folder", str(tmp_path / "cache"), "--training-steps", "10", "--resume"]
    with pytest.raises(DataError, match="changed"):
        run_pretraining.main([*arguments, *elsewhere])


def test_device_iterations_resume_too(tmp_path, flags):
    steps = ("--device-iterations", 2, "--training-steps", 8, "--checkpoint-steps", 4)
    run_pretraining.main(flags(tmp_path / "one", *steps))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_00000008")
    run_pretraining.main(flags(tmp_path / "two", *steps, "--resume"))
    assert_same_run(tmp_path / "one", tmp_path / "two", 8)


def test_resuming_a_finished_run_changes_nothing(tmp_path, flags, reference):
    output = tmp_path / "again"
    shutil.copytree(reference, output)
    result = run_pretraining.main([*flags(output, *STEPS), "--resume"])
    assert result.step == 8
    assert_same_run(reference, output, 8)
    before, after = (json.loads((run / "summary.json").read_text()) for run in (reference, output))
    assert {**before, "checkpoint": after["checkpoint"]} == after


SHORT = ("--training-steps", 4, "--eval-steps", 2, "--hidden-dropout", 0.1)


def test_keys_that_alter_nothing_leave_weights_and_metrics_alone(tmp_path, flags):
    changed = {
        "checkpoint_steps": 4,
        "checkpoints_to_keep": 1,
        "log_steps": 3,
        "wandb_project": "another",
        "dataloader_workers": 1,
        "async_dataloader": True,
        "floating_point_exceptions": True,
        "executable_cache": tmp_path / "executables",
    }
    assert set(changed) < keys_that_alter("nothing")
    words = []
    for key, value in changed.items():
        words += ["--" + key.replace("_", "-"), *([] if value is True else [value])]
    run_pretraining.main(flags(tmp_path / "plain", *SHORT))
    run_pretraining.main(flags(tmp_path / "changed", *SHORT, *words))
    assert_same_run(tmp_path / "plain", tmp_path / "changed", 4)


def test_a_run_resumes_with_other_files(tmp_path, flags):
    """A folder for profiles may be given, or another one, when a run goes on."""
    assert "profile_folder" in keys_that_alter("nothing")
    run_pretraining.main(flags(tmp_path / "run", *SHORT, "--profile-folder", tmp_path / "one"))
    resumed = (*SHORT, "--profile-folder", tmp_path / "two", "--resume")
    assert run_pretraining.main(flags(tmp_path / "run", *resumed)).step == 4
