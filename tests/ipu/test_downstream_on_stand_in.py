"""Fine-tuning on labelled texts and inference on `--device ipu`, over the stand-in for PopTorch."""

from __future__ import annotations

import json

import pytest

import model as models
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from model import ModelConfig, PretrainingModel

from .conftest import ROOT

pytestmark = pytest.mark.slow

SHAPE = {"norm": "pre", "convolution": True, "feed_forward": "grouped_projected"}


def test_a_regression_and_inference_from_it(stand_in, tmp_path):
    config = ModelConfig(vocab_size=40, hidden_size=32, num_layers=2, num_heads=2, **SHAPE)
    models.save_pretrained(PretrainingModel(config, seed=1), tmp_path / "pretrained")
    Tokenizer([*SPECIAL_TOKENS, "good", "bad", "is", "it"]).save(tmp_path / "pretrained")
    data = tmp_path / "own.csv"
    data.write_text("text,label\n" + "".join(f"it is good,{n}.5\n" for n in range(20)))
    words = ["--config", "test_glue", "--device", "ipu", "--output", tmp_path / "glue"]
    words += ["--checkpoint", tmp_path / "pretrained", "--training-steps", 2, "--cache-folder", tmp_path]
    words += ["--glue-task", "csv_regression", "--train-data", data, "--validation-data", data]
    ended = stand_in.end(stand_in.start([ROOT / "run_glue.py", *words]))
    assert ended.status == 0, ended.err
    assert [call["kind"] for call in ended.of("compile")] == ["inference", "training", "inference"]

    words = ["classes", "it is good", "it is bad", "--device", "ipu", "--checkpoint", tmp_path / "glue"]
    ended = stand_in.end(stand_in.start([ROOT / "run_inference.py", *words]))
    assert ended.status == 0, ended.err
    assert [call["kind"] for call in ended.of("compile")] == ["inference"]
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["text"] for row in rows] == ["it is good", "it is bad"] and all(
        "score" in row for row in rows
    )
    assert "measured on device ipu" in ended.err
