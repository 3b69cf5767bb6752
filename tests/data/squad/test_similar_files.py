"""Sets that are like SQuAD: other nesting, other forms of answers and ids, misplaced answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.files import DataError
from data.squad import (
    Answer,
    SquadDataOptions,
    open_questions,
    prepare_questions,
    read_questions,
)
from data.tokenizer import SPECIAL_TOKENS, Tokenizer

from .squad_files import CONTEXT, content, question, write

SAVOY = Answer("Savoy", CONTEXT.index("Savoy"))


def flat(id_: Any = "q1", **changes: Any) -> dict[str, Any]:
    return {**question(), "id": id_, "context": CONTEXT, **changes}


FORMS: dict[str, Any] = {
    "a list of objects": [{"text": "Savoy", "answer_start": SAVOY.start}],
    "an object of lists": {"text": ["Savoy"], "answer_start": [SAVOY.start]},
    "one object": {"text": "Savoy", "answer_start": SAVOY.start},
    "an offset of a column with gaps": {"text": ["Savoy"], "answer_start": [float(SAVOY.start or 0)]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "nesting", ["nested", "flat", "list", "articles", "paragraphs", "line", "lines", "hf"]
)
def test_every_form_of_answers_in_every_nesting(tmp_path: Path, form: str, nesting: str) -> None:
    entry = flat(answers=FORMS[form])
    if nesting == "hf":
        pytest.importorskip("datasets")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "train.jsonl").write_text(json.dumps(entry) + "\n")
        source = f"hf:{tmp_path / 'set'}"
    elif nesting in ("line", "lines"):
        rows = [entry, flat("q2", answers=FORMS[form])][: 1 if nesting == "line" else 2]
        (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\r\n\n" for row in rows))
        source = str(tmp_path / "a.json")
    else:
        whole = {
            "nested": content(question(answers=FORMS[form])),
            "flat": {"version": "v1", "data": [entry]},
            "list": [entry],
            "articles": content(question(answers=FORMS[form]))["data"],
            "paragraphs": [{"context": CONTEXT, "qas": [question(answers=FORMS[form])]}],
        }
        source = str(write(tmp_path / "a.json", whole[nesting]))
    read, *others = open_questions(source, "train", version="1.1").questions
    title = "Arve" if nesting in ("nested", "articles") else ""
    assert (read.answers, read.context, read.title) == ((SAVOY,), CONTEXT, title)
    assert len(others) == (nesting == "lines")


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f"{json.dumps(flat())}\n\n{json.dumps(flat('q2'))[:-5]}\n")
    with pytest.raises(DataError, match=r"is not JSON: .* at line 3, column"):
        read_questions(tmp_path / "a.json")


@pytest.mark.parametrize("source", ["json", "hf"])
def test_whole_numbers_are_ids(tmp_path: Path, source: str) -> None:
    if source == "json":
        name = str(write(tmp_path / "a.json", content(question(1), question(23))))  # type: ignore[arg-type]
    else:
        pytest.importorskip("datasets")
        (tmp_path / "set").mkdir()
        lines = "".join(json.dumps(flat(number)) + "\n" for number in (1, 23))
        (tmp_path / "set" / "train.jsonl").write_text(lines)
        name = f"hf:{tmp_path / 'set'}"
    assert [q.id for q in open_questions(name, "train", version="1.1").questions] == ["1", "23"]
    if source == "json":
        for answers in ("texts", "none", "found"):
            assert [q.id for q in read_questions(Path(name), answers=answers).questions] == ["1", "23"]
        for id_ in (True, 1.5, None, []):
            with pytest.raises(DataError, match="'id' is"):
                read_questions(write(tmp_path / "b.json", content(question(id_))))  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"qas\[1\] \(id '1'\) has the same id as"):
            read_questions(write(tmp_path / "b.json", content(question("1"), question(1))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "is_2"),
    [
        *(
            (version, True)
            for version in ("v2.0", "2.0", "2", 2, 2.0, "V2", "2.0.1", "SQuAD v2.0", "squad2.0")
        ),
        *(
            (version, False)
            for version in ("1.1", "2019-10-15", "2-1-2019", "20", 2019, "v1.2", "", None, "2a")
        ),
    ],
)
def test_which_versions_are_2(tmp_path: Path, version: Any, is_2: bool) -> None:
    read = read_questions(write(tmp_path / "a.json", content(question(), version=version)))
    assert read.has_impossible == is_2


@pytest.mark.parametrize("absent", [{}, {"answers": None}, {"answers": []}, {"answers": {}}])
def test_impossible_questions_need_no_answers(tmp_path: Path, absent: dict[str, Any]) -> None:
    entry = {"id": "q2", "question": "Where?", "is_impossible": True, "plausible_answers": [], **absent}
    read = read_questions(write(tmp_path / "a.json", content(question(), entry)))
    assert [q.is_impossible for q in read.questions] == [False, True]
    with pytest.raises(DataError, match="answers"):
        read_questions(write(tmp_path / "a.json", content({**entry, "is_impossible": False})))


def misplaced(id_: str, *, also: bool = False) -> dict[str, Any]:
    answers: list[dict[str, Any]] = [{"text": "Savoy", "answer_start": 3}]
    if also:
        answers.append({"text": "Geneva", "answer_start": CONTEXT.index("Geneva")})
    return question(id_, answers=answers)


def test_a_few_misplaced_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    entries = [question(f"q{number}") for number in range(3)]
    empty = question("empty", answers=[{"text": "", "answer_start": 0}])
    file = write(
        tmp_path / "a.json", content(*entries, misplaced("bad"), empty, misplaced("half", also=True))
    )
    read = open_questions(str(file), "train", version="1.1")
    assert [q.id for q in read.questions] == ["q0", "q1", "q2", "half"]
    assert read.questions[-1].answers == (Answer("Geneva", CONTEXT.index("Geneva")),)
    assert (
        len(read.left_out) == 2
        and "id 'bad'" in read.left_out[0]
        and "at its answer_start 3" in read.left_out[0]
    )

    words = sorted({*CONTEXT.replace(".", " .").split(), "Where", "does", "rise", "?"})
    prepared = prepare_questions(
        read,
        Tokenizer([*SPECIAL_TOKENS, *words], lowercase=False),
        SquadDataOptions(vocab_size=100, sequence_length=32, doc_stride=8, max_query_length=8),
        cache_folder=tmp_path / "cache",
    )
    assert "4 questions, 4 windows; 2 more left out" in str(prepared)


def test_evaluation_keeps_questions_with_misplaced_answers(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", content(misplaced("bad")))
    read = open_questions(str(file), "validation", version="1.1")
    assert [q.answers for q in read.questions] == [(Answer("Savoy", None),)] and not read.left_out


def test_a_file_with_mostly_misplaced_answers_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", content(question(), misplaced("a"), misplaced("b")))
    with pytest.raises(DataError, match=r"answer_start 3.*\(2 of 3 questions are like this\)"):
        read_questions(file)


@pytest.mark.parametrize("parts", ["one", "both"])
def test_a_folder_of_save_to_disk(tmp_path: Path, parts: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [flat(number, answers=FORMS["an object of lists"]) for number in (1, 2)]
    for row in rows:
        row.pop("title", None)
    one = datasets.Dataset.from_list(rows)
    saved = one if parts == "one" else datasets.DatasetDict({"train": one, "validation": one})
    saved.save_to_disk(str(tmp_path / "saved"))
    for split in ("train", "validation"):
        for prefix in ("", "hf:"):
            read = open_questions(f"{prefix}{tmp_path / 'saved'}", split, version="1.1")
            assert [q.answers for q in read.questions] == [(SAVOY,), (SAVOY,)]
    if parts == "both":
        with pytest.raises(DataError, match="its splits are: train, validation"):
            open_questions(f"hf:{tmp_path / 'saved'}", "test", version="1.1")


def test_a_configuration_is_chosen(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for name in ("de", "en"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(flat(name)) + "\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("de", "en"))
        + "---\n"
    )
    for source, subset in (
        (f"hf:{tmp_path}:en", None),
        (f"hf:{tmp_path}", "en"),
        (f"hf:{tmp_path}:en", "de"),
    ):
        (read,) = open_questions(source, "train", version="1.1", subset=subset).questions
        assert read.id == "en"
    with pytest.raises(DataError, match=r"(?s)'de', 'en'.*hf:NAME:CONFIGURATION"):
        open_questions(f"hf:{tmp_path}", "train", version="1.1")


@pytest.mark.parametrize("name", ["a" * 300, "~no-such-user/questions.json"])
def test_a_name_that_no_file_can_have_is_an_error_of_ours(name: str) -> None:
    with pytest.raises(DataError, match="cannot read"):
        open_questions(name, "train", version="1.1")
