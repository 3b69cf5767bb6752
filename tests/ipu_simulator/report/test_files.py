"""Reports are written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from ipu_simulator import report
from ipu_simulator.report import write_together

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
