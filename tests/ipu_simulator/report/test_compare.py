"""`compare`: two verdicts side by side, and whether the second one is worse."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from ipu_simulator import compare_command
from ipu_simulator.cost.verdict import Verdict

from tests.ipu_simulator.report.samples import fitting, overflowing
from tests.ipu_simulator.report.test_html import EVIL, Document


def _written(folder: Path, verdict: Verdict) -> Path:
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(verdict.to_dict()), encoding="utf-8")
    return folder / "verdict.json"


def _compare(*arguments: object) -> int:
    return compare_command.run("poptorch-simulator", [str(each) for each in arguments])


def _with_memory(verdict: Verdict, ipu: int, factor: float) -> Verdict:
    memory = verdict.ipus[ipu]
    larger = replace(memory, fullest_tile_bytes=round(memory.fullest_tile_bytes * factor))
    return replace(verdict, ipus=(*verdict.ipus[:ipu], larger, *verdict.ipus[ipu + 1 :]))


@pytest.mark.parametrize(
    ("change", "share", "status"),
    [
        (lambda it: it, 0.0, 0),
        (lambda it: replace(it, step_s=it.step_s * 1.04), 0.05, 0),
        (lambda it: replace(it, step_s=it.step_s * 1.06), 0.05, 1),
        (lambda it: replace(it, step_s=it.step_s * 0.5), 0.0, 0),
        (lambda it: replace(it, update_s=it.update_s * 9), 0.0, 0),
        (lambda it: _with_memory(it, 0, 1.06), 0.05, 1),
        (lambda it: _with_memory(it, 3, 1.06), 0.05, 1),
        (lambda it: _with_memory(it, 3, 1.04), 0.05, 0),
        (lambda it: _with_memory(it, 2, 0.5), 0.0, 0),
        (lambda it: replace(it, fits=False), 0.5, 1),
    ],
)
def test_the_exit_status_says_whether_memory_or_step_time_got_worse(
    tmp_path: Path,
    change,  # type: ignore[no-untyped-def]
    share: float,
    status: int,
) -> None:
    before = _written(tmp_path / "a", fitting())
    after = _written(tmp_path / "b", change(fitting()))
    assert _compare(before, after, "--worse-by", share) == status


def test_the_table_is_markdown_with_every_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = _written(tmp_path / "a", fitting()), _written(tmp_path / "b", overflowing())
    assert _compare(before, after) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {cells[1]: cells[2:6] for cells in ([part.strip() for part in line.split("|")] for line in lines)}
    assert {line.count("|") for line in lines} == {6}
    assert re.fullmatch(r"(\|-+){5}\|", lines[1])
    assert rows["fits"] == ["yes", "no", "", "worse"]
    for memory in fitting().ipus:
        grown = overflowing().ipus[memory.ipu].fullest_tile_bytes / memory.fullest_tile_bytes - 1
        assert rows[f"IPU {memory.ipu} fullest tile"][2:] == [f"{grown:+.1%}", "worse"]


def test_every_quantity_has_a_row_and_what_fits_now_is_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path / "b", replace(fitting(), time_to_train_s=math.inf))
    path.write_text(path.read_text().replace("Infinity", "null"))  # as reports write it
    assert _compare(_written(tmp_path / "a", overflowing()), path) == 0
    rows = dict(re.findall(r"^\| (.*?) +\| .* \| (\w*) +\|$", capsys.readouterr().out, re.MULTILINE))
    assert rows["fits"] == "better"
    assert list(rows)[2:13] == [
        "step time",
        "pipeline cycle",
        "cycles per step",
        "update",
        "host",
        "samples per step",
        "samples/s",
        "tokens/s",
        "utilisation",
        "time to train",
        "parameters",
    ]
    for before, after in zip(overflowing().ipus, fitting().ipus):
        differ = {name for name, size in before.components.items() if size != after.components[name]}
        assert differ
        for name in before.components:
            assert (f"IPU {before.ipu} {name.replace('_', ' ')} at the peak" in rows) == (name in differ)


def test_different_numbers_of_ipus_and_of_samples_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = fitting()
    fewer = replace(verdict, ipus=verdict.ipus[:2], samples_per_s=verdict.samples_per_s / 2)
    _compare(_written(tmp_path / "a", verdict), _written(tmp_path / "b", fewer))
    out = capsys.readouterr().out
    assert "4 IPUs per replica against 2" in out
    assert "different numbers of samples" in out
    assert "| fullest IPU peak" in out


def test_what_a_program_does_not_have_is_no_row_and_rounding_is_no_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreign program's samples have no tokens, and its training no end that is known."""
    verdict = replace(fitting(), tokens_per_s=0.0, time_to_train_s=0.0)
    after = replace(verdict, host_s=verdict.host_s * (1 - 1e-9))
    _compare(_written(tmp_path / "a", verdict), _written(tmp_path / "b", after))
    out = capsys.readouterr().out
    assert "tokens/s" not in out and "time to train" not in out
    assert "-0.0%" not in out and re.search(r"\| host +\|.*\+0\.0%", out)
    trained = replace(verdict, tokens_per_s=5.0, time_to_train_s=7.0)
    _compare(tmp_path / "a", _written(tmp_path / "c", trained))
    out = capsys.readouterr().out
    assert re.search(r"\| tokens/s +\|.*\| new", out) and re.search(r"\| time to train +\|.*\| new", out)


def test_folders_do_and_the_page_goes_where_the_user_says(tmp_path: Path) -> None:
    for name in "ab":
        _written(tmp_path / name, fitting(name=EVIL))
    assert _compare(tmp_path / "a", tmp_path / "b") == 0
    assert _compare(tmp_path / "a", tmp_path / "b", "--html", tmp_path / "new" / "page.html") == 0
    text = (tmp_path / "b" / "comparison.html").read_text(encoding="utf-8")
    assert text == (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    document = Document(text)
    assert not {"script", "link", "img"} & {tag for tag, _ in document.elements}
    assert not re.search(r"url\(|@import|https?:", text)
    assert set(document.attribute("aria-labelledby")) <= set(document.attribute("id"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[]", "is not a verdict: it is not a JSON object"),
        ("{}", "is not a verdict: lacks 'ipus'"),
        (json.dumps({"ipus": []}), "is not a verdict: it has no IPU"),
        (json.dumps({"ipus": [{"ipu": 0}]}), "is not a verdict"),
        (json.dumps({"ipus": 3}), "is not a verdict"),
    ],
)
def test_a_file_that_is_no_verdict_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, problem: str
) -> None:
    good, bad = _written(tmp_path / "a", fitting()), tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content, encoding="utf-8")
    assert _compare(good, bad) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert "bad.json" in error
    assert "name a verdict.json that --dry-run or --profile wrote" in error


@pytest.mark.parametrize("arguments", [["a"], ["a", "b", "--worse-by", "-1"], ["a", "b", "--worse-by", "x"]])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        _compare(*arguments)
    assert refused.value.code == 2
    assert "usage: poptorch-simulator compare" in capsys.readouterr().err
