"""Recipes in lines, equal sequences, and a target loss."""

import json

import pytest

import config as configuration
from benchmarks.times import lines_of
from benchmarks.trainings import Budget, trained
from planning import dry_run
from run_benchmark import main

pytestmark = pytest.mark.slow


def test_recipes_that_differ_in_length_alone_are_a_line():
    berts = ["bert_base_512_pod16", "bert_base_128_pod16"]
    groupberts = ["groupbert_base_128_pod16_tf1", "groupbert_base_384_pod16_tf1"]
    phases = lines_of(berts + groupberts, configuration.CONFIGS)
    assert [(phase.line, phase.number, phase.config.sequence_length) for phase in phases] == [
        ("bert_base_pod16", 1, 128),
        ("bert_base_pod16", 2, 512),
        ("groupbert_base_pod16_tf1", 1, 128),
        ("groupbert_base_pod16_tf1", 2, 384),
    ]


def test_fine_tuning_has_no_place_here():
    with pytest.raises(configuration.ConfigError, match="squad_bert_base_384 is a squad recipe"):
        lines_of(["squad_bert_base_384"], configuration.CONFIGS)


def test_all_lines_train_on_equal_sequences(device, tmp_path):
    names = ["bert_base_128_pod16", "bert_base_512_pod16", "groupbert_base_128_pod16"]
    result = main(["time-to-train", "--device", "simulator", "--configs", *names, "--output", str(tmp_path)])
    first, second, both, other = result.rows
    assert (first["sequences"], second["sequences"]) == (7038 * 65536, 2137 * 16384)
    assert other["sequences"] == first["sequences"]
    # 65,600 sequences an update: the last one is filled up.
    assert other["steps"] == -(-7038 * 65536 // 65600)
    verdict = dry_run.verdict_of(configuration.load(names[0]), names[0])
    assert first["hours"] == 7038 * verdict.step_s / 3600
    assert both["hours"] == first["hours"] + second["hours"]
    assert other["against_first"] == other["hours"] / first["hours"]
    origins = {column.key: column.origin for column in result.columns}
    assert origins["hours"] == "predicted"
    assert json.loads((tmp_path / "time-to-train.json").read_text())["step_time"] == "predicted"


def test_a_target_is_reached_at_the_first_evaluation_below_it(small, tmp_path):
    config = small(training_steps=16, learning_rate=3e-3)
    whole = trained(config, "whole", runs=tmp_path / "whole", budget=Budget(None))
    losses = {int(record["step"]): record["eval_mlm_loss"] for record in whole.evaluations}
    best = min(losses, key=lambda step: losses[step])
    assert best > 0, "a training that lowers no loss shows nothing here"
    recipe = tmp_path / "recipes.yml"
    recipe.write_text(config.to_yaml("mine"))
    words = ["time-to-train", "--recipes", str(recipe), "--configs", "mine", "--device", "simulator"]
    result = main([*words, "--target-loss", str(losses[best]), "--output", str(tmp_path / "out")])
    (row,) = result.rows
    assert row["steps"] == best
    assert row["loss"] == losses[best]
    assert row["samples"] == best * 6
    assert row["flops"] == best * whole.flops_per_update
    assert row["device_s"] == best * dry_run.verdict_of(config, "mine").step_s
    missed = main([*words, "--target-loss", "0.001", "--output", str(tmp_path / "out")]).rows[0]
    assert "steps" not in missed
    assert missed["loss"] == losses[16]


def test_a_target_needs_recipes(device):
    with pytest.raises(configuration.ConfigError, match="name the recipes to train"):
        main(["time-to-train", "--target-loss", "5"])
