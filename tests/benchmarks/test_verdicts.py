"""The table of verdicts: each row is that recipe's dry run, and the page holds what is known against it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import config
import run_benchmark
from planning.dry_run import verdict_of

pytestmark = pytest.mark.slow

# BERT Large and GroupBERT Base of one phase would be compared with the other phase too.
NAMES = ["bert_demo_tiny_128", "squad_bert_base_384"]


def test_rows_are_the_recipes_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_benchmark.main(["verdicts", "--configs", *NAMES, "--output", str(tmp_path)])
    with (tmp_path / "verdicts.csv").open() as stream:
        rows = {row["config"]: row for row in csv.DictReader(stream)}
    assert list(rows) == NAMES
    verdict = verdict_of(config.load(NAMES[1]), NAMES[1])
    row = rows[NAMES[1]]
    assert float(row["step_s"]) == verdict.step_s and row["fits"] == "yes"
    assert float(row["fullest"]) == max(memory.filled for memory in verdict.ipus)
    assert float(row["hours"]) == verdict.time_to_train_s / 3600
    assert "predicted" in capsys.readouterr().out


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="bert_bas_128"):
        run_benchmark.main(["verdicts", "--configs", "bert_bas_128", "--output", str(tmp_path)])
