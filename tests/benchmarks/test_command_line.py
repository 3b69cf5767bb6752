"""run_benchmark.py as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import command_line
from benchmarks import COMMANDS
from run_benchmark import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--budget-minutes" in text
    assert "--output" in text


@pytest.mark.parametrize(
    "words, says",
    [
        (["throughput", "--config", "dmo"], "no configuration 'dmo'"),
        (["throughput", "--config", "squad_demo"], "is a squad recipe"),
        (["throughput", "--calls", "0"], "--calls 0"),
        (["ablation", "--scale", "demos"], "no configuration 'demos'"),
        (["ablation", "--seeds", "0"], "'0' is not a positive integer"),
        (["attention", "--checkpoints", "nowhere"], "nowhere: no such folder"),
        (["ablation", "--budget-minutes", "-1"], "'-1' is not a positive number of minutes"),
        (["ablation", "--sceds", "2"], "--seeds"),
        (["attention", "--checkpoints", "a", "--sequences", "0"], "'0' is not a positive integer"),
        (["attention", "--checkpoints", "a", "--reach", "-1"], "'-1' is not a positive integer"),
        (["speed", "--output", __file__], "can't be used"),
    ],
)
def test_a_users_mistake_is_explained_without_a_traceback(words, says, tmp_path, monkeypatch, capsys):
    # As `__main__` does, but for the seconds of a process's start.
    monkeypatch.setattr(sys, "argv", ["run_benchmark.py", words[0], "--output", str(tmp_path), *words[1:]])
    try:
        status = command_line.run_as_program(main)
    except SystemExit as end:  # of the parser
        status = end.code
    said = capsys.readouterr().err
    assert status == 2
    assert says in said
    assert "Traceback" not in said


def test_the_program_has_the_status_of_its_main(tmp_path):
    command = [sys.executable, str(ROOT / "run_benchmark.py"), "speed", "--rounds", "0"]
    command += ["--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--rounds 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_time_nothing_runs_and_the_table_says_so(tmp_path):
    result = main(["all", "--budget-minutes", "1e-9", "--output", str(tmp_path)])
    assert result.rows == []
    assert "time-to-train" in result.notes[0]
    assert json.loads((tmp_path / "all.json").read_text())["rows"] == []
    assert "Not run within the budget: time-to-train" in (tmp_path / "all.md").read_text()


def test_throughput_of_each_source(small, tmp_path):
    recipe = tmp_path / "recipes.yml"
    recipe.write_text(small().to_yaml("mine"))
    words = ["throughput", "--configs", str(recipe), "--config", "mine", "--calls", "3", "--warm-up", "1"]
    result = main([*words, "--output", str(tmp_path / "out")])
    assert [row["data"] for row in result.rows] == ["real", "generated", "synthetic"]
    for row in result.rows:
        assert row["samples_per_s_low"] <= row["samples_per_s"] <= row["samples_per_s_high"]
        assert row["tokens_per_s"] == 32 * row["samples_per_s"]
        assert 0 <= row["waiting"] < 1
    origins = {column.key: column.origin for column in result.columns}
    assert (origins["samples_per_s"], origins["utilisation"]) == ("measured", "derived")
