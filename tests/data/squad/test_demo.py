"""The demo's questions match their generator, and the two sets share no function or module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.files import DataError
from data.squad import read_questions
from data.squad.demo.check import check, distinct_share, main
from data.squad.demo.make import FOLDER, make, text_of


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_files_are_what_the_program_writes(split: str) -> None:
    text = (FOLDER / f"{split}.json").read_text(encoding="utf-8")
    assert text == text_of(split)
    assert json.loads(text) == make(split)


def test_the_answers_stand_where_they_should_and_nothing_is_known_beforehand() -> None:
    train, validation = (read_questions(FOLDER / f"{split}.json") for split in ("train", "validation"))
    named = [
        {word for q in data.questions for word in q.question.rstrip("?").split() if "_" in word}
        for data in (train, validation)
    ]
    assert named[0] and named[1] and not named[0] & named[1]
    modules = [
        {q.answers[0].text for q in data.questions if "module" in q.question} for data in (train, validation)
    ]
    assert modules[0] and modules[1] and not modules[0] & modules[1]


VALIDATION = read_questions(FOLDER / "validation.json")


def first_answers() -> dict[str, str]:
    """A model that has learnt where answers are, and not which is asked for."""
    of_text: dict[str, str] = {}
    return {
        question.id: of_text.setdefault(question.context, question.answers[0].text)
        for question in VALIDATION.questions
    }


def test_only_answers_that_follow_the_questions_pass(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    right = {question.id: question.answers[0].text for question in VALIDATION.questions}
    half = {id_: text if number % 2 else "" for number, (id_, text) in enumerate(right.items())}
    for predictions, distinct, status in (
        (right, 1.0, 0),
        (first_answers(), 0.0, 1),
        ({}, 0.0, 1),
        (half, None, 1),
    ):
        if distinct is not None:
            assert distinct_share(VALIDATION, predictions) == distinct
        assert check(VALIDATION, predictions) == status
        (tmp_path / "predictions.json").write_text(json.dumps(predictions))
        assert main([str(tmp_path)]) == status
        told = capsys.readouterr()
        assert "answered exactly, on unseen texts" in told.out
        assert ("the demo failed" in told.err) == bool(status)
    with pytest.raises(DataError, match="name one output folder"):
        main([])


def test_each_text_has_questions_with_different_answers() -> None:
    assert distinct_share(VALIDATION, {q.id: q.answers[0].text for q in VALIDATION.questions}) == 1.0
    contexts = [question.context for question in VALIDATION.questions]
    assert all(contexts.count(context) >= 3 for context in set(contexts))
