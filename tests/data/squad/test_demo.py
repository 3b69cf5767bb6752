"""The demo's questions match their generator, and the two sets share no function or module."""

from __future__ import annotations

import json

import pytest

from data.squad import read_questions
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
