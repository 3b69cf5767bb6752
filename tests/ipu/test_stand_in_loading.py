"""Asynchronous loading on IPUs: PopTorch reads in a process, which has worker processes."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

import config
from training import TrainingError, loading

from .conftest import ROOT

pytestmark = pytest.mark.slow

ASYNCHRONOUS = ("--async-dataloader", "--dataloader-workers", 2)
STEPS = ("--training-steps", 4, "--checkpoint-steps", 2, "--eval-steps", 4, "--eval-batches", 5)


def started(stand_in, output, *extra, **environment):
    words = [ROOT / "run_pretraining.py", *stand_in.arguments(output, *STEPS, *ASYNCHRONOUS, *extra)]
    return stand_in.start(words, **environment)


def test_an_asynchronous_run_trains_on_the_same_data_and_leaves_no_process(stand_in, tmp_path):
    process = started(stand_in, tmp_path / "run")
    ended = stand_in.end(process)
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err and "survived" not in ended.err, ended.err
    assert stand_in.left_by(process) == []
    assert len(ended.of("run", "training")) == 4


def wait_for_calls(process, text, count):
    deadline = time.monotonic() + 120
    while not process.log.exists() or process.log.read_text().count(text) < count:
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_while_it_waits_for_data_ends_it_with_a_checkpoint(stand_in, tmp_path):
    """A terminal sends it to all processes of the run."""
    process = started(stand_in, tmp_path / "run", STAND_IN_STALL_AT=4)
    wait_for_calls(process, '"run", "kind": "training"', 3)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    ended = stand_in.end(process)
    assert ended.status == 0, ended.err
    assert "stopped by SIGINT after step 3" in ended.out and "to resume:" in ended.out
    assert (tmp_path / "run" / "checkpoints" / "step_00000003" / "state.json").exists()
    assert "Traceback" not in ended.err, ended.err
    assert stand_in.left_by(process) == []


def test_workers_end_with_the_process_that_started_them(stand_in, tmp_path):
    """The kernel kills the accessor alone when it runs out of memory."""
    process = started(stand_in, tmp_path / "run", STAND_IN_STALL_AT=4)
    wait_for_calls(process, '"run", "kind": "training"', 3)
    accessors = [json.loads(line) for line in process.log.read_text().splitlines() if "accessor" in line]
    os.kill(accessors[0]["pid"], signal.SIGKILL)
    ended = stand_in.end(process)
    assert ended.status != 0 and "accessor's process has ended" in ended.err
    assert stand_in.left_by(process) == []


@pytest.mark.parametrize(("free_gb", "fits"), [(14.7, None), (8.0, 34), (0.3, 0)])
def test_too_little_shared_memory_is_found_before_the_run(monkeypatch, free_gb, fits):
    """64 workers with two batches each, and three in the accessor, of the recipe's 65,600 sequences."""
    recipe = config.load("groupbert_base_128_pod16")
    fields = 3 * recipe.sequence_length + 2 * recipe.mask_tokens + 1
    batch_bytes = recipe.samples_per_call * fields * 4
    room = os.statvfs_result((1, 1000, 0, 0, int(free_gb * 1e6), 0, 0, 0, 0, 0))
    monkeypatch.setattr(loading.os, "statvfs", lambda folder: room)
    numbers = {
        "workers": recipe.dataloader_workers,
        "calls": recipe.training_steps,
        "ring": 3,
        "instances": 1,
    }
    if fits is None:
        loading.check_shared_memory(batch_bytes, **numbers)
        loading.check_shared_memory(batch_bytes, **{**numbers, "calls": 10, "instances": 8})
        return
    kept = "64 DataLoader workers keep up to 131 batches of 111.5 MB.*14.6 GB"
    words = f"{kept}.*{free_gb} GB free.*workers {fits},"
    with pytest.raises(TrainingError, match=words):
        loading.check_shared_memory(batch_bytes, **numbers)
    with pytest.raises(TrainingError, match="in each of 4 instances"):
        loading.check_shared_memory(batch_bytes, **{**numbers, "instances": 4})
