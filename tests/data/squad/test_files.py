"""Questions from files and Hugging Face datasets: what is read, and the error for each mistake."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.files import DataError
from data.squad import (
    Answer,
    Question,
    SquadDataOptions,
    open_questions,
    read_json,
    read_questions,
    read_split,
    squad_tokenizer,
)
from data.tokenizer import SPECIAL_TOKENS, Tokenizer

from .squad_files import CONTEXT, content, question, real, write


def test_a_question_is_read_whole(tmp_path: Path) -> None:
    read = read_questions(write(tmp_path / "a.json", content(question(answer="Rhône"))))
    answer = Answer("Rhône", CONTEXT.index("Rhône"))
    assert read.questions == (Question("q1", "Arve", "Where does the Arve rise?", CONTEXT, (answer,)),)
    assert not read.has_impossible


def test_a_gzipped_file_reads_alike_whatever_its_name(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.json", content(question()))
    zipped = tmp_path / "zipped"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_questions(zipped).questions == read_questions(plain).questions


@pytest.mark.parametrize("version", ["v2.0", "2.0", "unsaid"])
def test_version_2_has_questions_without_answers(tmp_path: Path, version: str) -> None:
    marks = {"is_impossible": True} if version == "unsaid" else {}
    file = write(
        tmp_path / "a.json", content(question("q2", answers=[], **marks), question(), version=version)
    )
    read = read_questions(file)
    assert read.has_impossible
    assert [q.is_impossible for q in read.questions] == [True, False]


def test_own_questions_need_no_answers(tmp_path: Path) -> None:
    bare = {"id": "q1", "question": "Where?"}
    (read,) = read_questions(write(tmp_path / "a.json", content(bare)), answers="none").questions
    assert (read.question, read.context, read.answers) == ("Where?", CONTEXT, ())


def test_scoring_needs_only_ids_and_texts(tmp_path: Path) -> None:
    bare = {"data": [{"paragraphs": [{"qas": [{"id": "q1", "answers": [{"text": "Savoy"}]}]}]}]}
    (read,) = read_questions(write(tmp_path / "a.json", bare), answers="texts").questions
    assert read.answers == (Answer("Savoy", None),)


MISTAKES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no answers in 1.1": (content(question(answers=[])), ("q1", "no answers", "1.1")),
    "no answers though possible": (
        content(question(answers=[], is_impossible=False)),
        ("q1", "no answers", "is_impossible is false"),
    ),
    "answers though impossible": (content(question(is_impossible=True)), ("q1", "'Savoy'")),
    "wrong offset": (
        content(question(answers=[{"text": "Savoy", "answer_start": 4}])),
        ("q1", "'Savoy'", "answer_start 4", "'river'", "first occurrence is at 24"),
    ),
    "offset past the end": (
        content(question(answers=[{"text": "Savoy", "answer_start": 900}])),
        ("q1", "nothing is there", f"{len(CONTEXT)} characters"),
    ),
    "negative offset": (
        content(question(answers=[{"text": "Geneva.", "answer_start": -7}])),
        ("q1", "nothing is there"),
    ),
    "no offset": (content(question(answers=[{"text": "Savoy"}])), ("q1", "'answer_start' is missing")),
    "empty answer": (content(question(answers=[{"text": "", "answer_start": 0}])), ("q1", "empty")),
    "duplicate ids": (content(question(), question()), ("'q1'", "qas[0]", "qas[1]")),
    "no id": (content({"question": "Where?"}), ("data[0].paragraphs[0].qas[0]", "'id' is missing")),
    "no question": (content({"id": "q1", "answers": []}), ("q1", "'question' is missing")),
    "no answers key": (content({"id": "q1", "question": "Where?"}), ("qas[0]", "'answers'")),
    "no context": ({"data": [{"paragraphs": [{"qas": [question()]}]}]}, ("q1", "'context'")),
    "no paragraphs": ({"data": [{"title": "Arve"}]}, ("data[0]", "'paragraphs'", "'title'")),
    "no data": ({"Arve": 1}, ("'data'", "'Arve'")),
    "a list": ([], ("'data'", "list")),
    "paragraphs of text": ({"data": [{"paragraphs": ["Arve"]}]}, ("data[0].paragraphs",)),
    "no questions": (content(), ("no questions",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_file_and_place(tmp_path: Path, mistake: str) -> None:
    value, words = MISTAKES[mistake]
    file = write(tmp_path / "mine.json", value)
    with pytest.raises(DataError) as raised:
        read_questions(file)
    for word in ("mine.json", *words):
        assert word in str(raised.value)


def test_malformed_json_is_placed(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_text('{"data": [\n  {"title": }\n]}')
    with pytest.raises(DataError, match=r"broken\.json.*line 2, column 13"):
        read_json(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"q1": "a", "q2": "b", "q1": "c"}', "the key 'q1' 2 times in one object"),
        ("[" * 100_000, "can't be read as JSON: maximum recursion depth"),
        ('{"data": ' + "9" * 5000 + "}", "can't be read as JSON: Exceeds the limit"),
    ],
    ids=["repeated key", "brackets", "digits"],
)
def test_what_json_can_write_and_nobody_can_mean(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"odd\.json.*{words}"):
        read_json(file)


def test_half_a_character_is_placed(tmp_path: Path) -> None:
    file = tmp_path / "half.json"
    file.write_text(json.dumps(content(question())).replace("Where does", "Where \\ud83d does"))
    with pytest.raises(DataError, match=r"qas\[0\].*'question' has '\\ud83d' at character 6, .*half"):
        read_questions(file)


def test_a_bomb_is_refused_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.json"
    file.write_bytes(gzip.compress(b'{"data": ["' + b"a" * 2_000_000 + b'"]}'))
    assert file.stat().st_size < 4000
    with pytest.raises(DataError, match="more than 1000000 bytes when decompressed"):
        read_json(file, most_bytes=1_000_000)
    assert read_json(file, most_bytes=3_000_000)["data"]


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.json.gz"
    file.write_bytes(gzip.compress(b'{"data": []}' * 100)[:-20])
    with pytest.raises(DataError, match=r"cut\.json\.gz.*damaged gzip"):
        read_json(file)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_an_unreadable_path_is_named(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"cannot read .*x\.json"):
        read_json(tmp_path / "x.json")


def test_bytes_that_are_not_utf_8_are_placed(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes('{"data": "Rhône"}'.encode("latin-1"))
    with pytest.raises(DataError, match="byte 12"):
        read_json(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("name", "questions", "answers", "impossible"),
    [("dev-v1.1.json.gz", 10_570, 34_726, 0), ("dev-v2.0.json.gz", 11_873, 20_302, 5_945)],
)
def test_the_real_files(name: str, questions: int, answers: int, impossible: int) -> None:
    read = read_questions(real(name))
    assert len(read.questions) == questions
    assert sum(len(q.answers) for q in read.questions) == answers
    assert sum(q.is_impossible for q in read.questions) == impossible
    assert read.has_impossible == (impossible > 0)


OPTIONS = SquadDataOptions(
    tokenizer="checkpoint", vocab_size=100, sequence_length=64, doc_stride=16, max_query_length=16
)


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
        ((row(), row()), r"row 1 \(id 'q1'\) has the same id as row 0"),
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
