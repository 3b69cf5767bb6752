"""A worker that hangs is killed after a time, damaged data is named; the run ends with a checkpoint."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_pretraining
from tests.end_to_end.conftest import STEPS
from tests.end_to_end.test_resume import assert_same_run
from tests.processes import is_alive

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]

ROOT = Path(__file__).resolve().parents[2]

# A worker stops itself in its fourth fetch. With --data-timeout-s, the time is over as soon as it has: a
# limit of seconds would also end the wait for a worker that a busy machine is slow to start.
STOPPING = f"""
import multiprocessing, os, signal, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
import data.workers
import run_pretraining
from data.dataset import PretrainingDataset
from torch.utils.data import get_worker_info
fetch, calls = PretrainingDataset.fetch, []
def stopping(self, *arguments):
    calls.extend([1] if get_worker_info() is not None else [])
    if len(calls) == 4:
        print("stopped", os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    return fetch(self, *arguments)
PretrainingDataset.fetch = stopping
def pass_time():
    while not any(map(data.workers.is_stopped, multiprocessing.active_children())):
        time.sleep(0.05)
    while True:
        os.kill(os.getpid(), signal.SIGALRM)
        time.sleep(0.5)
if "--data-timeout-s" in sys.argv:
    signal.signal(signal.SIGALRM, lambda *_: None)
    threading.Thread(target=pass_time, daemon=True).start()
sys.exit(run_pretraining.run_as_program())
"""


@pytest.mark.parametrize("mode", [(), ("--async-dataloader",)])
def test_a_stopped_loader_worker_ends_the_run_with_a_checkpoint(tmp_path, flags, reference, mode):
    output = tmp_path / "run"
    arguments = flags(output, *STEPS, "--dataloader-workers", 1, *mode)
    command = [sys.executable, "-c", STOPPING, *arguments, "--data-timeout-s", "600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    number = int(re.search(r"stopped (\d+)", done.stdout).group(1))
    assert f"(process {number}, stopped by a signal)" in done.stderr
    assert "no batch came for 600 s" in done.stderr and "--resume" in done.stderr
    assert not is_alive(number)
    run_pretraining.main([*arguments, "--resume"])
    assert_same_run(output, reference, 8)


def test_a_worker_whose_run_is_killed_while_it_starts_ends_too(tmp_path, flags, started):
    """Before a worker watches over its parent; PyTorch's own watch would never notice then."""
    script = STOPPING.replace(
        "PretrainingDataset.fetch = stopping",
        """
import time
from torch.utils.data._utils.worker import WorkerInfo
made = WorkerInfo.__init__
def starting(self, **named):
    made(self, **named)
    print("starting", os.getpid(), flush=True)
    time.sleep(2.0)
WorkerInfo.__init__ = starting
""",
    )
    command = [sys.executable, "-c", script, *flags(tmp_path / "run", *STEPS, "--dataloader-workers", 1)]
    run = started(command)
    line = next(line for line in run.stdout if line.startswith("starting"))
    run.kill()
    number = int(line.split()[1])
    deadline = time.monotonic() + 120
    while is_alive(number):
        assert time.monotonic() < deadline, f"process {number} is left"
        time.sleep(0.1)


def test_a_signal_ends_the_wait_for_a_stopped_worker(tmp_path, flags, started):
    command = [sys.executable, "-c", STOPPING, *flags(tmp_path / "run", *STEPS, "--dataloader-workers", 1)]
    run = started(command, stderr=subprocess.PIPE)
    line = next(line for line in run.stdout if line.startswith("stopped"))
    number = int(line.split()[1])
    time.sleep(1.0)  # until the run waits for that batch
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "stopped by SIGTERM" in out
    assert not is_alive(number)


def test_a_stopped_preprocessing_worker_ends_the_preparation(tmp_path, flags):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from multiprocessing.process import BaseProcess
import run_pretraining
start = BaseProcess.start
def start_and_stop(self):
    start(self)
    os.kill(self.pid, signal.SIGSTOP)
    print("stopped", self.pid, flush=True)
if __name__ == "__main__":
    BaseProcess.start = start_and_stop
    sys.exit(run_pretraining.run_as_program())
"""
    file = tmp_path / "program.py"
    file.write_text(script)
    cache = ("--cache-folder", tmp_path / "cache", "--preprocessing-workers", 1, "--data-timeout-s", 1)
    command = [sys.executable, str(file), *flags(tmp_path / "run", *STEPS, *cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 2, done.stderr
    number = int(re.search(r"stopped (\d+)", done.stdout).group(1))
    assert f"(process {number}, stopped by a signal)" in done.stderr
    assert "no preprocessing worker finished a shard for 1 s" in done.stderr
    assert not is_alive(number)


CUTTING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from training.metrics_file import MetricsFile
import run_pretraining
original, calls = MetricsFile.write, []
def cutting(self, *arguments):
    calls.append(original(self, *arguments))
    if len(calls) == 3:
        for shard in Path(sys.argv[sys.argv.index("--cache-folder") + 1]).rglob("*.shard"):
            os.truncate(shard, 1000)
MetricsFile.write = cutting
sys.exit(run_pretraining.run_as_program())
"""


def test_shards_that_are_cut_under_a_run_end_it_with_a_checkpoint(tmp_path, flags):
    output, cache = tmp_path / "run", tmp_path / "cache"
    arguments = flags(output, *STEPS, "--dataloader-workers", 1)
    arguments[arguments.index("--cache-folder") + 1] = str(cache)
    command = [sys.executable, "-c", CUTTING, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.match(r"error: .*-00000\.shard' ends at byte 1000", done.stderr), done.stderr
    saved = re.search(r"the checkpoint is (\S+)\. Then rerun with --resume", done.stderr).group(1)
    assert (Path(saved) / "state.json").is_file()
