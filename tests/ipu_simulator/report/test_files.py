"""The written reports: completely or not at all; the schema of verdict.json, which programs rely on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from ipu_simulator import report
from ipu_simulator.cost.verdict import COMPONENTS
from ipu_simulator.report import json_text, write_together

from tests.ipu_simulator.report.samples import fitting, overflowing


def test_three_files_in_a_folder_that_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "output"
    report.write(fitting(), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "trace.json", "verdict.json"]


def test_a_second_verdict_takes_the_place_of_the_first(tmp_path: Path) -> None:
    report.write(fitting(), tmp_path)
    report.write(overflowing(), tmp_path)
    assert '"fits": false' in (tmp_path / "verdict.json").read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failure_leaves_the_files_before_it_and_nothing_else(tmp_path: Path) -> None:
    write_together(tmp_path, {"a": "old a", "b": "old b"})
    with pytest.raises(UnicodeEncodeError):
        write_together(tmp_path, {"a": "new a", "b": "\ud800"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError) as error:
        report.write(fitting(), tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)


KEYS = (
    "config device target fits parameters ipus pipeline step_s update_s host_s samples_per_s packs_per_s"
    " tokens_per_s flops_per_sample utilisation training_steps time_to_train_s remedies overflows bounds"
    " assumptions"
).split()


def test_every_field_is_there_whether_it_fits_or_not() -> None:
    for verdict in (fitting(), overflowing()):
        plain = json.loads(json_text(verdict))
        assert list(plain) == KEYS
        assert plain["fits"] is verdict.fits
        assert plain["step_s"] == verdict.step_s
        assert set(plain["pipeline"]) == {
            "forward_stages",
            "pipeline_cycles_per_update",
            "cycle_s",
            "bubble_fraction",
        }
        for ipu in plain["ipus"]:
            assert sum(ipu["components"].values()) == ipu["peak_bytes"]
            assert sum(ipu["always_live_components"].values()) == ipu["always_live_bytes"]
            assert set(ipu["components"]) <= set(COMPONENTS)


def test_an_overflow_comes_with_its_buffers_and_remedies() -> None:
    plain = json.loads(json_text(overflowing()))
    assert plain["overflows"][0]["buffers"][0]["component"] == "optimizer_state"
    assert plain["remedies"][0]["change"] == "--optimizer-state off_chip"


def test_what_is_no_number_is_null() -> None:
    text = json_text(replace(fitting(), time_to_train_s=math.inf, utilisation=math.nan))
    plain = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    assert plain["time_to_train_s"] is None
    assert plain["utilisation"] is None
