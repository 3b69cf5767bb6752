"""Attention by relative position, against loops over every pair of tokens."""

import pytest
import torch

import data
from benchmarks.attention import attended
from benchmarks.steps import random_batch
from benchmarks.trainings import Budget, trained
from model import ModelConfig, PretrainingModel
from run_benchmark import main

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, vocab_size=100, max_position_embeddings=16)


def padded_batch(small):
    batch = random_batch(small(vocab_size=100, sequence_length=8, mask_tokens=2), 3, seed=1)
    batch[1][0, 5:] = 0
    return batch


def probabilities(model, batch):
    """Of the first layer, written out: [B, H, S, S]."""
    x_bsh = model.encoder.embeddings(batch[0], batch[2])
    body = model.encoder.layers[0].attention.body
    heads = body.num_heads
    split = [
        layer(x_bsh).view(3, 8, heads, -1).permute(0, 2, 1, 3).double() for layer in (body.query, body.key)
    ]
    scores = split[0] @ split[1].transpose(2, 3) / split[0].shape[-1] ** 0.5
    scores = scores.masked_fill(batch[1][:, None, None, :] == 0, float("-inf"))
    return scores.softmax(-1)


def test_against_loops_over_every_pair(small):
    model = PretrainingModel(CONFIG, seed=3).eval()
    for parameter in model.parameters():  # far from uniform
        parameter.data.mul_(8)
    batch = padded_batch(small)
    with torch.no_grad():
        expected = probabilities(model, batch)
    got = attended(model, [batch], reach=9)[0]
    by_offset = {offset: [] for offset in range(-9, 10)}
    distance = within = tokens = 0.0
    for row in range(3):
        length = int(batch[1][row].sum())
        for query in range(length):
            tokens += 1
            for key in range(length):
                here = expected[row, :, query, key]
                by_offset[key - query].append(here)
                distance += float(here.mean()) * abs(key - query)
                within += float(here.mean()) * (abs(key - query) <= 3)
    for column, offset in enumerate(range(-9, 10)):
        mean = torch.stack(by_offset[offset]).mean(0) if by_offset[offset] else torch.zeros(2)
        assert torch.allclose(got.by_offset_ho[:, column], mean.double(), atol=1e-5)
    assert got.row["distance"] == pytest.approx(distance / tokens, abs=1e-4)
    assert got.row["within_3"] == pytest.approx(within / tokens, abs=1e-4)


def test_equal_attention_has_the_uniform_figures(small):
    model = PretrainingModel(CONFIG, seed=3).eval()
    for layer in model.encoder.layers:
        torch.nn.init.zeros_(layer.attention.body.query.weight)
        torch.nn.init.zeros_(layer.attention.body.query.bias)
    batches = [padded_batch(small), padded_batch(small)]
    for one in attended(model, batches, reach=4):
        assert one.row["distance"] == pytest.approx(one.row["uniform_distance"], abs=1e-6)
        assert one.row["within_3"] == pytest.approx(one.row["uniform_within_3"], abs=1e-6)
        assert one.row["itself"] == pytest.approx(one.row["uniform_itself"], abs=1e-6)


def test_from_a_training_to_files(small, tmp_path):
    result = trained(small(), "x", runs=tmp_path / "runs", budget=Budget(None))
    words = ["attention", "--checkpoints", f"Mine={result.folder}", "--sequences", "3", "--reach", "4"]
    table = main([*words, "--output", str(tmp_path / "out")])
    assert [(row["name"], row["layer"]) for row in table.rows] == [("Mine", 1), ("Mine", 2)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "attention.json",
        "attention.csv",
        "attention.png",
    }


def test_more_sequences_than_there_are_is_said(small, tmp_path):
    result = trained(small(), "x", runs=tmp_path / "runs", budget=Budget(None))
    words = ["attention", "--checkpoints", str(result.folder), "--sequences", "1000000"]
    with pytest.raises(data.DataError, match="--sequences 1000000 needs 1000000 examples"):
        main([*words, "--output", str(tmp_path / "out")])
