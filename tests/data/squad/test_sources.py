"""Questions by file and by Hugging Face name; versions that don't fit; where the tokeniser comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.files import DataError
from data.squad import SquadDataOptions, open_questions, read_questions, read_split, squad_tokenizer
from data.tokenizer import SPECIAL_TOKENS, Tokenizer

from .squad_files import CONTEXT, content, question, write

OPTIONS = SquadDataOptions("1.1", None, None, "checkpoint", True, 100, 64, 16, 16)


def row(id_: str = "q1", answer: str = "Savoy", **changes: Any) -> dict[str, Any]:
    answers = {"text": [answer], "answer_start": [CONTEXT.find(answer)]}
    return {
        "id": id_,
        "title": "Arve",
        "question": "Where?",
        "context": CONTEXT,
        "answers": answers,
        **changes,
    }


def dataset(folder: Path, *rows: dict[str, Any]) -> str:
    """A Hugging Face dataset in a local folder, with the splits train and validation."""
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8"
        )
    return f"hf:{folder}"


NOTHING: dict[str, list[Any]] = {"text": [], "answer_start": []}


def test_a_hugging_face_dataset_equals_the_file(tmp_path: Path) -> None:
    name = dataset(tmp_path / "set", row(), row("q2", "Geneva"))
    file = write(
        tmp_path / "file.json",
        content(question("q1", question="Where?"), question("q2", "Geneva", question="Where?")),
    )
    found = open_questions(name, "validation", version="1.1")
    assert found.questions == read_questions(file).questions
    assert not found.has_impossible


def test_without_answers_means_impossible_in_version_2(tmp_path: Path) -> None:
    name = dataset(tmp_path / "set", row(), row("q2", answers=NOTHING))
    found = open_questions(name, "train", version="2.0")
    assert found.has_impossible and [q.is_impossible for q in found.questions] == [False, True]
    with pytest.raises(DataError, match=r"row 1 \(id 'q2'\) has no answers.*squad_version"):
        open_questions(name, "train", version="1.1")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((row(answers={"text": ["Savoy"], "answer_start": [3]}),), r"row 0 .*not at its answer_start 3"),
        ((row(), row()), r"row 1 \(id 'q1'\) has the id of row 0"),
        (({"id": "q1", "text": "no question"},), "lacks title, question, context, answers"),
    ],
)
def test_mistakes_name_the_row(tmp_path: Path, rows: tuple[dict[str, Any], ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_questions(dataset(tmp_path / "set", *rows), "train", version="1.1")


def test_what_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read hf:.*--train-data FILE"):
        open_questions(f"hf:{tmp_path / 'nowhere'}", "train", version="1.1")


def test_versions_of_files(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", content(question()))
    two = write(
        tmp_path / "two.json",
        content(question(), question("q2", answers=[], is_impossible=True), version="v2.0"),
    )
    assert open_questions(str(one), "train", version="2.0").has_impossible
    assert not open_questions(str(one), "train", version="1.1").has_impossible
    with pytest.raises(DataError, match=r"is of version 2\.0.*set squad_version to 2\.0"):
        open_questions(str(two), "train", version="1.1")
    options = replace(OPTIONS, train_data=str(one), validation_data=str(two), squad_version="2.0")
    assert [len(read_split(options, split).questions) for split in ("train", "validation")] == [1, 2]


def test_ones_own_questions_need_no_id_and_no_answer(tmp_path: Path) -> None:
    own = {
        "data": [
            {"paragraphs": [{"context": CONTEXT, "qas": [{"question": "Where?"}, {"question": "Who?"}]}]}
        ]
    }
    found = read_questions(write(tmp_path / "own.json", own), answers="none").questions
    assert [q.question for q in found] == ["Where?", "Who?"] and len({q.id for q in found}) == 2
    with pytest.raises(DataError, match="'id' is missing"):
        read_questions(tmp_path / "own.json")


def test_the_checkpoints_tokenizer(tmp_path: Path) -> None:
    theirs = Tokenizer([*SPECIAL_TOKENS, "river", "s"], lowercase=False)
    theirs.save(tmp_path)
    assert squad_tokenizer(OPTIONS, tmp_path).fingerprint() == theirs.fingerprint()
    assert (
        squad_tokenizer(replace(OPTIONS, tokenizer=str(tmp_path)), None).fingerprint() == theirs.fingerprint()
    )


@pytest.mark.parametrize(
    ("changes", "with_checkpoint", "words"),
    [
        ({}, False, "no --checkpoint is given"),
        ({"tokenizer": "train"}, True, "trains no vocabulary"),
        ({"vocab_size": 6}, True, "7 tokens, 1 more than vocab_size 6"),
    ],
)
def test_tokenizers_that_will_not_do(
    tmp_path: Path, changes: dict[str, Any], with_checkpoint: bool, words: str
) -> None:
    Tokenizer([*SPECIAL_TOKENS, "river", "s"]).save(tmp_path)
    with pytest.raises(DataError, match=words):
        squad_tokenizer(replace(OPTIONS, **changes), tmp_path if with_checkpoint else None)
