"""--dry-run --inference: latency of a micro batch, throughput and memory of the forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import config as configuration
import run_pretraining
import run_squad
from config import ConfigError
from ipu.placement import pipeline_stages
from planning.dry_run import inference_verdict_of, verdict_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["test_bert", "test_groupbert"])
def test_a_micro_batch_passes_every_stage_once(name: str) -> None:
    given: Any = {"device": "simulator", "micro_batch_size": 1}
    config = configuration.load(name, overrides=given)
    verdict, trained = inference_verdict_of(config, name), verdict_of(config, name)
    stages = pipeline_stages(config.layers_per_ipu, config.head)
    assert verdict.pipeline.forward_stages == stages
    assert verdict.latency_s == stages * verdict.pipeline.cycle_s + verdict.host_s
    # A call has as many micro batches as fill the pipeline.
    per_call = stages * config.replication_factor
    assert verdict.samples_per_s == pytest.approx(per_call / verdict.step_s)
    assert verdict.pipeline.pipeline_cycles_per_update == 2 * stages - 1
    assert verdict.update_s == verdict.training_steps == 0
    assert verdict.pipeline.cycle_s < trained.pipeline.cycle_s
    for memory in verdict.ipus:
        for part in ("gradient_accumulators", "optimizer_state", "recompute"):
            assert not memory.components[part]
    larger = inference_verdict_of(configuration.load(name, overrides={**given, "micro_batch_size": 4}), name)
    assert larger.latency_s > verdict.latency_s
    assert larger.samples_per_s > verdict.samples_per_s


def test_the_command_prints_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "test_groupbert", "--dry-run", "--inference", "--micro-batch-size", "1"]
    found = run_pretraining.main([*words, "--output", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    (latency,) = [line for line in lines if line.startswith("  latency ")]
    assert "of a micro batch" in latency
    written = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert written["step_s"] == found.verdict.step_s
    assert "<dt>Latency</dt>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_fine_tuned_model_gets_no_labels(tmp_path: Path) -> None:
    words = ["--config", "test_squad", "--dry-run", "--inference", "--micro-batch-size", "1"]
    found = run_squad.main([*words, "--output", str(tmp_path)])
    assert not any("loss" in work.op for work in found.verdict.details.work)


def test_inference_is_a_word_for_dry_runs() -> None:
    with pytest.raises(ConfigError, match="--inference is read with --dry-run only"):
        run_pretraining.main(["--config", "test_bert", "--inference"])


def test_a_foreign_program() -> None:
    from poptorch import simulator

    with simulator.without_memory():
        model = torch.nn.Linear(64, 64)
        inputs = (torch.zeros(1, 64),)
    verdict = simulator.verdict_of(model, inputs, target="pod4")
    assert verdict.latency_s == verdict.pipeline.cycle_s + verdict.host_s
    assert verdict.samples_per_s == pytest.approx(1 / verdict.step_s)
