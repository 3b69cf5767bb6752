"""`--dry-run` as a user meets it: what it prints, writes and answers with."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, get_args

import pytest

import command_line
import config
import run_pretraining
import run_squad
from config.schema import kinds
from model import TASKS
from planning.dry_run import DryRun, assess, dry_run, program_of, verdict_of

pytestmark = pytest.mark.slow

# Types of the fields that programs read from verdict.json.
FIELDS: Dict[str, Any] = {
    "config": str,
    "device": str,
    "target": str,
    "fits": bool,
    "parameters": int,
    "ipus": list,
    "pipeline": dict,
    "step_s": float,
    "update_s": float,
    "host_s": float,
    "samples_per_s": float,
    "packs_per_s": float,
    "tokens_per_s": float,
    "flops_per_sample": float,
    "utilisation": float,
    "training_steps": int,
    "time_to_train_s": float,
    "remedies": list,
}
COMPONENTS = (
    "weights gradient_accumulators optimizer_state stashes recompute temporary matmul_working_set code "
    "exchange_code stream_buffers"
).split()


def check_verdict(verdict: Dict[str, Any], name: str, **overrides: object) -> None:
    recipe = config.load(name, overrides=overrides)
    for field, kind in FIELDS.items():
        assert type(verdict[field]) is kind, field
    assert (verdict["config"], verdict["device"], verdict["target"]) == (name, "simulator", recipe.target)
    assert verdict["parameters"] == config.derived(recipe)["parameters"]
    assert len(verdict["ipus"]) == recipe.ipus_per_replica
    for memory in verdict["ipus"]:
        assert list(memory["components"]) == COMPONENTS
        assert sum(memory["components"].values()) == memory["peak_bytes"]
        assert sum(memory["always_live_components"].values()) == memory["always_live_bytes"]
        assert memory["always_live_bytes"] <= memory["peak_bytes"]
    pipeline, accumulation = verdict["pipeline"], recipe.gradient_accumulation
    assert pipeline["forward_stages"] == config.derived(recipe)["pipeline_stages"]
    assert pipeline["pipeline_cycles_per_update"] == accumulation + 2 * pipeline["forward_stages"] - 2
    assert pipeline["bubble_fraction"] == 1 - accumulation / pipeline["pipeline_cycles_per_update"]
    sequences = recipe.micro_batch_size * accumulation * recipe.replication_factor
    assert verdict["samples_per_s"] == pytest.approx(sequences / verdict["step_s"])
    assert verdict["tokens_per_s"] == pytest.approx(verdict["samples_per_s"] * recipe.sequence_length)
    assert verdict["time_to_train_s"] == pytest.approx(verdict["training_steps"] * verdict["step_s"])
    assert verdict["flops_per_sample"] == pytest.approx(
        config.derived(recipe)["flops_per_sequence"], rel=1e-3
    )
    assert 0 < verdict["utilisation"] < 1


def test_a_dry_run_does_without_the_garbage_collector(tmp_path: Path) -> None:
    collections: List[str] = []

    def count(phase: str, _information: Dict[str, int]) -> None:
        if phase == "start":
            collections.append(phase)

    recipe = config.load("test_groupbert", overrides={"cache_folder": str(tmp_path / "cache")})
    gc.callbacks.append(count)
    try:
        dry_run(recipe, "test_groupbert", tmp_path)
    finally:
        gc.callbacks.remove(count)
    assert len(collections) <= 1 and gc.isenabled()  # one follows as soon as it is on again


@pytest.mark.parametrize("name", ["test_groupbert", "test_squad"])
def test_what_it_leaves(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = run_squad if name == "test_squad" else run_pretraining
    result = runner.main(["--config", name, "--dry-run", "--output", str(tmp_path)])
    assert isinstance(result, DryRun) and result.fits
    written = json.loads((tmp_path / "verdict.json").read_text())
    check_verdict(written, name)
    printed = capsys.readouterr().out
    assert printed.startswith("device: simulator") and f"{name} on pod4: FITS" in printed
    assert "<html" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    again = config.load("resolved", path=tmp_path / "resolved.yml")
    assert again == config.load(name)


def test_what_does_not_fit_is_status_3_with_every_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--config bert_demo_tiny_128 --micro-batch-size 256 --device ipu --dry-run".split()
    arguments = [*words, "--output", str(tmp_path)]
    assert command_line.run_as_program(lambda _: run_pretraining.main(arguments)) == 3
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    check_verdict(verdict, "bert_demo_tiny_128", micro_batch_size=256)
    assert verdict["fits"] is False
    first = verdict["remedies"][0]
    assert {"change", "saves_bytes", "costs_s"} <= set(first)
    assert first["change"] in printed


def test_a_finished_runs_configuration_stays(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "resolved.yml").write_text("kept\n")
    run_pretraining.main(["--config", "test_bert", "--dry-run", "--output", str(tmp_path)])
    assert (tmp_path / "resolved.yml").read_text() == "kept\n"
    assert (tmp_path / "verdict.json").exists()


def test_a_bad_configuration_is_refused_as_in_a_run(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="2 too few"):
        run_pretraining.main(
            ["--config", "bert_base_128_pod16", "--layers-per-ipu", "0", "4", "4", "2", "--dry-run"]
        )


def test_epochs_are_over_the_published_set_of_the_task() -> None:
    fine_tuning = {"task": "glue", "training_steps": 0, "epochs": 2.0, "device": "simulator"}
    mnli = config.load("test_squad", overrides=fine_tuning)
    program = program_of(mnli)
    for change, examples in (
        ({}, 392_702),
        ({"glue_task": "wnli"}, 635),
        ({"task": "squad", "squad_version": "2.0"}, 130_319),
    ):
        verdict = assess(replace(mnli, **change), "", program)
        assert verdict.training_steps == math.ceil(2 * examples / mnli.global_batch_size)
        assert verdict.time_to_train_s == verdict.training_steps * verdict.step_s


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.is_pretraining])
def test_each_value_of_a_tasks_key_has_its_number_of_examples(name: str) -> None:
    key = TASKS[name].dataset_key
    assert key is not None
    # "ax" has no training set, and the size of a user's own isn't known.
    unknown = {"ax", "csv", "csv_regression"}
    assert set(TASKS[name].training_examples) == set(get_args(kinds()[key])) - unknown


def test_a_task_without_a_published_set_needs_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(TASKS["glue"]):  # type: ignore[name-defined,misc]
        task, dataset_key = "other", None

    monkeypatch.setitem(TASKS, "other", Other)
    ours = {"task": "other", "training_steps": 0, "epochs": 2.0, "device": "simulator"}
    with pytest.raises(config.ConfigError, match=r"size of other's training set.*set training_steps"):
        verdict_of(config.load("test_squad", overrides=ours), "other")
