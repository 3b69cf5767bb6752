"""--profile: reports on a foreign program, whose run stays the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ipu
from tests.poptorch.test_front_door import door

pytestmark = pytest.mark.slow

FOREIGN = Path(ipu.__file__).parents[1] / "tests" / "poptorch" / "foreign"
REPORTS = {"verdict.json", "report.html", "trace.json"}


def test_a_foreign_pipeline_gets_its_reports(tmp_path: Path) -> None:
    program = FOREIGN / "pipelined_transformer.py"
    plain = door(program, folder=tmp_path, OMP_NUM_THREADS="1")
    profiled = door("--profile", "reports", program, folder=tmp_path, OMP_NUM_THREADS="1")
    assert profiled.stdout == plain.stdout
    assert {path.name for path in (tmp_path / "reports").iterdir()} == REPORTS
    verdict = json.loads((tmp_path / "reports" / "verdict.json").read_text())
    assert verdict["config"] == program.name
    assert verdict["fits"] is True
    assert verdict["pipeline"]["forward_stages"] == len(verdict["ipus"]) > 1
    assert f"{program.name} on pod16" in profiled.stderr


def test_training_and_inference_have_reports_of_their_own(tmp_path: Path) -> None:
    door("--profile", tmp_path / "out", FOREIGN / "lstm.py", folder=tmp_path, OMP_NUM_THREADS="1")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*REPORTS, "inference"}
    assert {path.name for path in (tmp_path / "out" / "inference").iterdir()} == REPORTS
    training, inference = (
        json.loads((folder / "verdict.json").read_text())
        for folder in (tmp_path / "out", tmp_path / "out" / "inference")
    )
    assert training["flops_per_sample"] > inference["flops_per_sample"] > 0
    assert training["update_s"] > inference["update_s"] == 0


def test_what_cannot_be_reported_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    program = FOREIGN / "cnn_classifier.py"
    result = door("--profile", tmp_path / "file" / "below", program, folder=tmp_path, OMP_NUM_THREADS="1")
    assert "warning: no reports on the training model: " in result.stderr
    assert "Traceback" not in result.stderr
    assert "accuracy" in result.stdout


def test_a_program_must_follow_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, why in ((["--profile"], "a folder"), (["--profile", "file", "x.py"], "is a file")):
        result = door(*arguments, folder=tmp_path, status=2)
        assert why in result.stderr
