"""Kept programs: equal to a fresh capture, never out of date, and read without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import config as configuration
from config import Config
from planning import dry_run, programs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(tmp_path: Path) -> Config:
    given = {"cache_folder": str(tmp_path), "device": "simulator", "target": "pod16"}
    return configuration.load("test_bert", overrides=given)


@pytest.fixture(scope="module")
def captured() -> Any:
    return dry_run.program_of(configuration.load("test_bert", overrides={"device": "simulator"}))


def _changed(config: Config, **changes: Any) -> Config:
    return replace(config, **changes)


def test_a_kept_program_is_the_captured_one(small: Config, captured: Any) -> None:
    assert programs.kept(small) is None
    programs.keep(small, captured)
    graph, settings = programs.kept(small) or (None, None)
    assert graph == captured[0]
    assert settings == captured[1]
    assert [op.attributes for op in graph.ops] == [op.attributes for op in captured[0].ops]


OPTIONS: Any = {
    "gradient_accumulation": 24,
    "replication_factor": 4,
    "device_iterations": 2,
    "matmul_proportion": (0.1, 0.7),
    "optimizer_state": "off_chip",
    "replicated_tensor_sharding": True,
    "training_steps": 40,
    "checkpoint_steps": None,
    "eval_steps": None,
}
NUMBERS: Any = {
    "seed": 7,
    "learning_rate": 0.5,
    "lr_schedule": "polynomial",
    "lr_warmup": 0.5,
    "lr_warmup_power": 0.5,
    "lr_end": 0.1,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "optimizer_eps": 0.5,
    "target": "bow-pod64",
    "host_threads": 1,
    "corpus": "elsewhere",
    "masked_lm_probability": 0.5,
}


@pytest.mark.parametrize("changes", [OPTIONS, NUMBERS, {**OPTIONS, **NUMBERS}])
def test_one_graph_serves_every_option_and_number(small: Config, captured: Any, changes: Any) -> None:
    programs.keep(small, captured)
    changed = _changed(small, **changes)
    assert programs.kept(changed) == dry_run.program_of(changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": 3},
        {"sequence_length": 64},
        {"mask_tokens": 3},
        {"num_layers": 4, "layers_per_ipu": (2, 2)},
        {"precision": "float32"},
        {"optimizer": "lamb"},
        {"enable_half_partials": False},
        {"enable_half_first_order_momentum": True},
        {"recompute_checkpoint_every_layer": False},
        {"embedding_serialization_factor": 2},
        {"one_hot_masked_positions": True},
        {"hidden_dropout": 0.2},
    ],
)
def test_another_program_has_another_digest(small: Config, captured: Any, changes: Any) -> None:
    programs.keep(small, captured)
    assert programs.kept(_changed(small, **changes)) is None


@pytest.mark.parametrize("damage", ["", "{}\n{}", "[]\n[]", "{", '{"a": 1}\n{"tensors": [[1]]}', "\x00"])
def test_a_damaged_file_counts_as_none(small: Config, captured: Any, damage: str) -> None:
    programs.keep(small, captured)
    (file,) = Path(small.cache_folder, "programs").iterdir()
    file.write_text(damage, encoding="utf-8")
    assert programs.kept(small) is None


def test_what_is_missing_is_captured_and_kept(small: Config, captured: Any) -> None:
    assert dry_run.kept_program_of(small) == captured
    assert programs.kept(small) == captured


def test_old_programs_make_room(small: Config, captured: Any) -> None:
    folder = Path(small.cache_folder, "programs")
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.json").write_text("", encoding="utf-8")
    programs.keep(small, captured)
    assert len(list(folder.iterdir())) < 50
    assert programs.kept(small) is not None


def test_a_folder_that_takes_no_file_is_reported(
    small: Config, captured: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(small.cache_folder, "programs").write_text("not a folder", encoding="utf-8")
    programs.keep(small, captured)
    assert "isn't kept for the next dry run" in capsys.readouterr().err


PROGRAM = """
import sys
import run_pretraining
found = run_pretraining.main(sys.argv[1:])
assert "torch._dynamo" not in sys.modules
print("PyTorch" if "torch" in sys.modules else "alone", found.verdict.step_s)
"""


def test_a_second_dry_run_needs_no_pytorch(tmp_path: Path) -> None:
    def run(*more: str) -> str:
        words = ["--config", "test_bert", "--dry-run", "--cache-folder", str(tmp_path / "cache")]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words, "--output", str(tmp_path / "out"), *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("device: simulator")
        return lines[-1]

    first = run().split()
    assert first[0] == "PyTorch"
    assert run().split() == ["alone", first[1]]
    assert run("--gradient-accumulation", "64", "--learning-rate", "0.3").startswith("alone")
    verdict = (tmp_path / "out" / "verdict.json").read_text(encoding="utf-8")
    assert '"fits": true' in verdict


@pytest.mark.parametrize(("task", "classes"), [("mnli", 3), ("stsb", 1), ("qqp", 2), ("csv", 2)])
def test_a_task_of_glue_has_its_classes(task: str, classes: int, tmp_path: Path) -> None:
    given = {"device": "simulator", "glue_task": task, "cache_folder": str(tmp_path)}
    glue = configuration.load("test_glue", overrides=given)
    graph, settings = dry_run.kept_program_of(glue)
    shapes = {tensor.name: tensor.shape for tensor in graph.tensors}
    assert shapes["classes.weight"] == (classes, glue.hidden_size)
    assert graph.tensors[graph.inputs[-1]].dtype == ("float32" if task == "stsb" else "int32")
    assert programs.kept(glue) == (graph, settings)
    assert programs.kept(replace(glue, glue_task="rte")) is None
