"""Subsets of SQuAD files, and the scores of baselines that don't read the context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.squad import read_questions
from data.squad.study import baselines, main, part

from .squad_files import CONTEXT, content, question, real, write


def test_parts_of_even_and_odd_articles_share_none() -> None:
    whole = content(question())
    whole["data"] = [
        {"title": f"a{n}", "paragraphs": [{"context": CONTEXT + "x" * n, "qas": [question(f"q{n}")]}]}
        for n in range(9)
    ]
    even, odd = (part(whole, 99, 10**6, articles) for articles in ("even", "odd"))
    titles = [{article["title"] for article in half["data"]} for half in (even, odd)]
    assert titles == [{"a0", "a2", "a4", "a6", "a8"}, {"a1", "a3", "a5", "a7"}]
    short = part(whole, 99, len(CONTEXT) + 3)
    assert {article["title"] for article in short["data"]} == {"a0", "a1", "a2", "a3"}
    assert part(whole, 2, 10**6) == part(whole, 2, 10**6)
    assert len(part(whole, 2, 10**6)["data"]) == 2


def test_baselines(tmp_path: Path) -> None:
    impossible = question("q3", answers=[], is_impossible=True)
    train = write(
        tmp_path / "train.json", content(question("q1", "Geneva"), question("q2", "Geneva"), question("q3"))
    )
    validation = write(
        tmp_path / "v.json", content(question("q1", "Geneva"), question("q2"), impossible, version="v2.0")
    )
    found = baselines(read_questions(train), read_questions(validation))
    constant, beginning, nothing = found
    assert (constant, nothing) == ("always 'Geneva'", "always no answer")
    assert found["always 'Geneva'"]["exact"] == pytest.approx(100 / 3)
    assert found["always no answer"]["NoAns_f1"] == 100
    # "The river Arve rises in Savoy." has one word of "Savoy": no shorter beginning scores anything.
    assert beginning == "the context's first 6 word(s)"


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "part.json"
    main(["part", str(real("dev-v2.0.json.gz")), str(target), "--questions", "30", "--characters", "500"])
    kept = read_questions(target)
    assert kept.has_impossible and len(kept.questions) >= 30
    assert all(len(question.context) <= 500 for question in kept.questions)
    main(["baselines", str(target), str(target)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last.split(": ", 1)[1])["NoAns_f1"] == 100
