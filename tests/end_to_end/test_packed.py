"""Packed pretraining from end to end: resume, throughput in sequences, evaluation, verdict, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import run_pretraining
from config import ConfigError
from training.metrics_file import read_metrics

pytestmark = pytest.mark.slow

UNTIMED = {"samples_per_s", "packs_per_s"}
SHORT = ("--short-sequence-probability", 0.7, "--lr-schedule", "constant", "--eval-steps", 2)


def untimed(output: Path):
    return [
        {key: value for key, value in record.items() if key not in UNTIMED}
        for record in read_metrics(output / "metrics.jsonl")
    ]


@pytest.fixture
def packed(flags):
    return lambda output, *extra: flags(output, *SHORT, *extra, config="test_packed")


def test_a_resumed_run_trains_on_the_same_rows(tmp_path, packed, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_pretraining.main(packed(whole))
    printed = capsys.readouterr().out
    assert printed.count("data: packing, ") == 2 and "padding" in printed
    run_pretraining.main(packed(parts, "--training-steps", 2))
    run_pretraining.main(packed(parts, "--resume"))
    assert untimed(whole) == untimed(parts)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(str(run / "checkpoints" / "step_00000004" / name)) for run in (whole, parts))
        assert all(one[key].equal(other[key]) for key in one)

    rows = 12  # of an update
    for record in read_metrics(whole / "metrics.jsonl")[1:]:
        sequences = rows * record["samples_per_s"] / record["packs_per_s"]
        assert sequences == pytest.approx(round(sequences), abs=1e-6) and rows <= sequences <= 3 * rows
    summary = json.loads((whole / "summary.json").read_text())
    verdict = json.loads((whole / "verdict.json").read_text())
    assert 1.1 < summary["samples_per_s"] / summary["packs_per_s"] < 3
    ratio = float(printed.split("in a row")[0].split()[-1])
    assert verdict["samples_per_s"] / verdict["packs_per_s"] == pytest.approx(ratio, abs=1e-3)
    assert "+rows-" in (parts / "checkpoints" / "step_00000004" / "state.json").read_text()


def test_an_evaluation_is_that_of_the_unpacked_sequences(tmp_path, packed):
    """In float32, to the order of sums: means are over all labels, however they are packed."""
    whole = ("--eval-batches", "none", "--validation-fraction", 0.03, "--training-steps", 1)
    whole += ("--checkpoint-steps", 1, "--eval-steps", 1)
    run_pretraining.main(packed(tmp_path / "packed", *whole))
    run_pretraining.main(packed(tmp_path / "alone", *whole, "--no-packed-data"))
    (packed_first, *_), (alone_first, *_) = untimed(tmp_path / "packed"), untimed(tmp_path / "alone")
    assert packed_first.keys() == alone_first.keys()
    for key, value in packed_first.items():
        assert value == pytest.approx(alone_first[key], abs=1e-5), key


def test_a_dry_run_counts_sequences_and_packs(tmp_path, packed, capsys):
    run_pretraining.main(packed(tmp_path / "run", "--dry-run", "--packing-factor", 1.5))
    assert "an update has 12 packs of up to 3 sequences, about 18 sequences" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["samples_per_s"] == pytest.approx(1.5 * verdict["packs_per_s"])
    assert verdict["samples_per_s"] * verdict["step_s"] == pytest.approx(18)


@pytest.mark.parametrize(
    "extra, words",
    [
        (("--mask-tokens", 4), "mask_tokens: 4 is too few for packed rows.* use at least 6"),
        (("--no-packed-data", "--packing-factor", 1.2), "packing_factor: 1.2 is read with packed_data only"),
        (("--no-packed-data", "--max-sequences-per-pack", 2), "max_sequences_per_pack: 2 is read with"),
        (("--max-sequences-per-pack", 0), "max_sequences_per_pack: 0 is outside"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, packed, extra, words):
    with pytest.raises(ConfigError, match=words):
        run_pretraining.main(packed(tmp_path / "run", *extra))
