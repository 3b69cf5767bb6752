"""Scoring from the command line: what stdout, stderr and the exit status say."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

import run_squad
from data import DataError
from data.squad import Answered, Candidate, Question

from .data.squad.squad_files import content, question, real, write

ROOT = Path(__file__).resolve().parents[1]


def _program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run_squad.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_program_prints_one_json_object(tmp_path: Path) -> None:
    data = write(tmp_path / "data.json", content(question("q1"), question("q2")))
    predictions = tmp_path / "predictions.json.gz"
    predictions.write_bytes(gzip.compress(b'{"q1": "the Savoy"}'))
    done = _program("--score", predictions, "--data", data)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"exact": 50, "f1": 50, "total": 2}
    assert "1 of 2 questions have no prediction" in done.stderr


def test_predictions_for_other_questions_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.json", content(question("q1")))
    predictions = write(tmp_path / "p.json", {"q1": "Savoy", "q7": "Savoy", "q6": "Savoy"})
    assert run_squad.main(["--score", str(predictions), "--data", str(data)])["exact"] == 100
    assert "2 of 3 predictions belong to no question of data.json, 'q6' first" in capsys.readouterr().err


def test_the_table_of_answers_fits_a_terminal() -> None:
    """A question of any length, with line ends, escapes and signs that turn the direction of writing."""

    def answered(asked: str, text: str) -> Answered:
        candidates = (Candidate("b", 0.0, 0.0, 0.25), Candidate(text, 0.0, 0.0, 0.75))
        return Answered(Question("q", "", asked, "context"), text, text, candidates, None)

    rows = [answered("why\n not\x1b[31m\u202e?", "x " * 500), answered("very " * 300, "")]
    lines = run_squad.table(rows).splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 140
    assert lines[2].startswith("why not[31m? ") and lines[2].endswith("x...        75.0%")
    assert lines[3].startswith("very very") and " (no answer) " in lines[3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "use --config NAME"), (("--score", "p.json"), "--data"), (("--nonsense",), "--nonsense")],
)
def test_a_mistake_ends_with_status_2(arguments: tuple[str, ...], words: str) -> None:
    done = _program(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_main_returns_version_2s_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    impossible = question("q2", answers=[], is_impossible=True)
    data = write(tmp_path / "data.json", content(question(), impossible, version="v2.0"))
    predictions = write(tmp_path / "predictions.json", {"q1": "", "q2": ""})
    result = run_squad.main(["--score", str(predictions), "--data", str(data)])
    assert (result["exact"], result["HasAns_f1"], result["NoAns_f1"]) == (50, 0, 100)
    out, err = capsys.readouterr()
    assert json.loads(out) == result
    assert not err


@pytest.mark.parametrize(
    ("predictions", "words"),
    [([], "a JSON list"), ({"q1": None}, "not a text")],
)
def test_what_is_not_predictions_is_refused(tmp_path: Path, predictions: object, words: str) -> None:
    data = write(tmp_path / "data.json", content(question()))
    file = write(tmp_path / "predictions.json", predictions)
    with pytest.raises(DataError, match=words):
        run_squad.main(["--score", str(file), "--data", str(data)])


def test_real_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    predictions, data = real("predictions/v2.0-bert-single.json.gz"), real("dev-v2.0.json.gz")
    run_squad.main(["--score", str(predictions), "--data", str(data)])
    result = json.loads(capsys.readouterr().out)
    assert (round(result["exact"], 4), round(result["f1"], 4)) == (78.7417, 81.7753)
