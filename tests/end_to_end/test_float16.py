"""A whole run with an IPU's numerics: it learns as in float32, and stops and goes on exactly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import run_pretraining
from training.metrics_file import read_metrics

pytestmark = pytest.mark.slow

AS_IPU = ("--simulator-precision", "ipu-float16", "--loss-scaling", 512)
# How far apart the losses of an update may be, as a share; measured: 0.02% at most over 95 updates.
BAND = 0.002


def curve(output):
    return [record["loss"] for record in read_metrics(output / "metrics.jsonl") if "loss" in record]


def test_float16_learns_as_float32_does(tmp_path, flags):
    steps = ("--training-steps", 16, "--learning-rate", "6e-3", "--eval-batches", 4)
    run_pretraining.main(flags(tmp_path / "float32", *steps))
    run_pretraining.main(flags(tmp_path / "float16", *steps, *AS_IPU))
    wide, narrow = curve(tmp_path / "float32"), curve(tmp_path / "float16")
    assert len(wide) == len(narrow) == 16
    assert wide[-1] < 0.95 * wide[0]
    assert narrow != wide
    assert max(abs(a - b) / b for a, b in zip(narrow, wide)) < BAND
    evaluations = [
        json.loads((tmp_path / run / "summary.json").read_text()) for run in ("float32", "float16")
    ]
    assert evaluations[1]["eval_mlm_loss"] == pytest.approx(evaluations[0]["eval_mlm_loss"], rel=BAND)


def test_checkpoints_are_float16_and_resume_exactly(tmp_path, flags):
    steps = ("--training-steps", 4, "--checkpoint-steps", 2, "--hidden-dropout", 0.1, "--eval-batches", 2)
    moments = ("--enable-half-first-order-momentum", "--max-grad-norm", 1)
    arguments = flags(tmp_path / "one", *steps, *moments, *AS_IPU)
    run_pretraining.main(arguments)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_00000004")
    run_pretraining.main([*flags(tmp_path / "two", *steps, *moments, *AS_IPU), "--resume"])
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, two = (
            load_file(str(tmp_path / run / "checkpoints" / "step_00000004" / name)) for run in ("one", "two")
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
        half = {key for key, tensor in one.items() if tensor.dtype is torch.float16}
        assert half == {key for key in one if name.startswith("model") or "Accl1___" in key}
    assert curve(tmp_path / "one") == curve(tmp_path / "two")
