"""Questions from SQuAD's JSON files (plain or gzipped), or from Hugging Face datasets with its columns.

A set may be nested as SQuAD's files are, or have one object a question as Hugging Face's do; its answers may
be a list of objects or an object of lists.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from ..files import DataError, local_path
from ..hugging_face import PREFIX, as_named, library, parts_of, rows_of
from ..json_files import read_json


@dataclass(frozen=True)
class Answer:
    """`start` is the character offset in the context; None if it wasn't requested."""

    text: str
    start: Optional[int]


@dataclass(frozen=True)
class Question:
    """One question on one paragraph. `is_impossible`: the context has no answer (version 2.0)."""

    id: str
    title: str
    question: str
    context: str
    answers: Tuple[Answer, ...] = ()
    is_impossible: bool = False


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file, in order; `has_impossible`: it is of version 2.0. `left_out`: why questions of
    the file can't be trained on, one line each."""

    name: str
    questions: Tuple[Question, ...]
    has_impossible: bool
    left_out: Tuple[str, ...] = ()


def read_questions(file: Path, *, answers: str = "located") -> QuestionSet:
    """Reads a file of questions.

    `answers` is "located" for training (a question without an answer that is at its offset is left out; if
    most are, the file is invalid), "found" for evaluation (the offset of an answer that isn't there is None),
    "texts" for scoring (offsets, contexts and the question text are optional) or "none" for prediction:
    answers in the file are ignored, and a question without an id gets its position as id. A file is of
    version 2.0 if it says so, or if any question has the key `is_impossible`. Raises DataError for an invalid
    file.
    """
    if answers not in ("located", "found", "texts", "none"):
        raise DataError(f'answers is {answers!r}: it takes "located", "found", "texts" or "none".')
    file = Path(file)
    content = read_json(file, lines=True)
    entries = list(_entries(file, content))
    version = content.get("version", "") if isinstance(content, dict) else ""
    has_impossible = _VERSION_2.fullmatch(str(version)) is not None or any(
        "is_impossible" in entry for _, _, _, entry in entries
    )
    return _question_set(file.name, repr(str(file)), entries, answers, has_impossible)


_VERSION_2 = re.compile(r"(squad[ _-]?)?v?2(\.\d+)*", re.IGNORECASE)  # "2019-10-15" isn't
# A question's place in its file or dataset, title, context and object.
_Entry = Tuple[str, Optional[str], Optional[str], Dict[str, Any]]


def _question_set(
    name: str, source: str, entries: Iterable[_Entry], answers: str, has_impossible: bool
) -> QuestionSet:
    """The questions of the entries. `source` names their file or dataset in messages."""
    seen: Dict[str, str] = {}
    questions: List[Question] = []
    left_out: List[str] = []
    for where, title, context, entry in entries:
        question, fault = _question(source, where, title or "", context, entry, answers, has_impossible)
        if question.id in seen:
            raise DataError(
                f"{source} at {where} (id {question.id!r}) has the same id as {seen[question.id]}: "
                "predictions are matched by id. Give every question a unique id."
            )
        seen[question.id] = where
        if fault is None:
            questions.append(question)
        else:
            left_out.append(fault)
    if len(left_out) > len(questions):
        more = f" ({len(left_out)} of {len(seen)} questions are like this)" if len(seen) > 1 else ""
        raise DataError(f"{left_out[0]}{more}")
    if not questions:
        raise DataError(f"{source} has no questions: check that it is the one you meant.")
    return QuestionSet(name, tuple(questions), has_impossible, tuple(left_out))


def _entries(file: Path, content: Any) -> Iterator[_Entry]:
    source = repr(str(file))
    if _is_flat(content):  # JSON lines with a single line
        content = [content]
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        content = {"data": content}
    for article_place, article in _objects(source, "", content, "data"):
        if _is_flat(article):
            yield article_place, *_title_and_context(source, article_place, article), article
            continue
        paragraphs = (
            [(article_place, article)]  # without articles, as Simple Transformers has them
            if "qas" in article and "paragraphs" not in article
            else _objects(source, article_place, article, "paragraphs")
        )
        for paragraph_place, paragraph in paragraphs:
            _, context = _title_and_context(source, paragraph_place, paragraph)
            for place, entry in _objects(source, paragraph_place, paragraph, "qas"):
                yield place, str(article.get("title") or ""), context, entry


def _is_flat(entry: Any) -> bool:
    """Whether it is a question with its context, as in Hugging Face's datasets."""
    return isinstance(entry, dict) and "question" in entry and "paragraphs" not in entry


def _title_and_context(source: str, place: str, entry: Dict[str, Any]) -> Tuple[Optional[str], Optional[str]]:
    title = entry.get("title")
    return None if title is None else str(title), _text(source, place, entry, "context", optional=True)


def _objects(source: str, place: str, parent: Any, key: str) -> List[Tuple[str, Dict[str, Any]]]:
    if not isinstance(parent, dict) or key not in parent:
        what = f"keys {', '.join(map(repr, parent))}" if isinstance(parent, dict) else type(parent).__name__
        raise DataError(
            f"{source}{_at(place)} lacks {key!r} (it has {what}): a SQuAD file is "
            '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}.'
        )
    children = parent[key]
    place = f"{place}.{key}" if place else key
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise DataError(f"{source} at {place} is not a list of objects, as SQuAD files have there.")
    return [(f"{place}[{i}]", child) for i, child in enumerate(children)]


def _text(
    source: str, place: str, parent: Dict[str, Any], key: str, *, optional: bool = False
) -> Optional[str]:
    value = parent.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, str):
        found = "is missing" if key not in parent else f"is {json.dumps(value)[:60]}"
        kind = "a text or a whole number" if key == "id" else "a text"
        raise DataError(f"{source}{_at(place)}: {key!r} {found}; it must be {kind}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a pair of escapes
        raise DataError(
            f"{source}{_at(place)}: {key!r} has {value[error.start]!a} at character {error.start}, "
            "which is half of a surrogate pair. Use an undamaged copy, or remove it."
        ) from error
    return value


def _at(place: str) -> str:
    return f" at {place}" if place else ""


def _question(
    source: str,
    place: str,
    title: str,
    context: Optional[str],
    entry: Dict[str, Any],
    wanted: str,
    has_impossible: bool,
) -> Tuple[Question, Optional[str]]:
    """The question, and why it can't be trained on, if so: none of its answers is at its offset."""
    id_ = entry.get("id")
    if type(id_) is int:
        id_ = str(id_)
    else:
        id_ = _text(source, place, entry, "id", optional=wanted == "none")
    id_ = place if id_ is None else id_
    named = f"{place} (id {id_!r})"
    text = _text(source, named, entry, "question", optional=wanted == "texts") or ""
    if context is None and wanted != "texts":
        raise DataError(f"{source} at {named}: its paragraph has no 'context' to find an answer in.")
    context = context or ""
    if wanted == "none":
        return Question(id_, title, text, context), None
    impossible = entry.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        raise DataError(f"{source} at {named}: is_impossible is {impossible!r}, not true or false.")
    if "answers" not in entry and not impossible:
        raise DataError(
            f"{source} at {named} lacks 'answers' (it has keys {', '.join(map(repr, entry))}). Give it "
            'answers, or set "is_impossible": true (SQuAD 2.0).'
        )
    answers: List[Answer] = []
    faults: List[str] = []
    for answer_place, answer in _answer_objects(source, named, entry.get("answers")):
        read, fault = _answer(f"{source} at {answer_place}", context, answer, wanted)
        if fault is None or wanted == "found":
            answers.append(read)
        else:
            faults.append(fault)
    is_impossible = has_impossible and (not (answers or faults) if impossible is None else impossible)
    if is_impossible and (answers or faults):
        first = answers[0].text if answers else "..."
        raise DataError(
            f"{source} at {named}: is_impossible is true, yet it has the answer {first!r}. "
            "Remove one of the two."
        )
    if not answers and not faults and not is_impossible:
        mend = "is_impossible is false" if has_impossible else "version 1.1 has no unanswerable questions"
        raise DataError(
            f"{source} at {named} has no answers, and {mend}. Give it an answer, or set "
            '"is_impossible": true and squad_version to 2.0.'
        )
    question = Question(id_, title, text, context, tuple(answers), is_impossible)
    return question, faults[0] if faults and not answers else None


def _answer_objects(source: str, named: str, answers: Any) -> List[Tuple[str, Dict[str, Any]]]:
    """Each answer's place and object; of a list of objects, an object of lists, or one object."""
    if answers is None:
        return []
    if isinstance(answers, dict):
        columns = {key: value if isinstance(value, list) else [value] for key, value in answers.items()}
        counts = {len(column) for column in columns.values()}
        if len(counts) > 1:
            raise DataError(
                f"{source} at {named}: the lists of answers have different lengths: "
                + ", ".join(f"{key} {len(column)}" for key, column in columns.items())
            )
        answers = [dict(zip(columns, values)) for values in zip(*columns.values())]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise DataError(
            f"{source} at {named}: answers is neither a list of objects nor an object of lists, but "
            f"{json.dumps(answers)[:60]}"
        )
    return [(f"{named}, answers[{i}]", answer) for i, answer in enumerate(answers)]


def _answer(where: str, context: str, entry: Dict[str, Any], wanted: str) -> Tuple[Answer, Optional[str]]:
    """The answer, and why it can't be trained on, if so."""
    text = _text(where, "", entry, "text") or ""
    if wanted == "texts":
        return Answer(text, None), None
    start = entry.get("answer_start")
    if isinstance(start, float) and start.is_integer():  # a column that had empty cells
        start = int(start)
    if type(start) is not int:
        found = "is missing" if start is None else f"is {json.dumps(start)[:60]}"
        raise DataError(f"{where}: 'answer_start' {found}; it must be a whole number.")
    fault = _misplaced(where, context, text, start)
    return Answer(text, None if fault else start), fault


def _misplaced(where: str, context: str, text: str, start: int) -> Optional[str]:
    """What is wrong with an answer's text or offset, if anything."""
    if not text:
        return f"{where}: the answer's text is empty. Remove it, or give its text."
    if start >= 0 and context[start : start + len(text)] == text:
        return None
    stands = f"{context[start : start + len(text)]!r} is" if 0 <= start < len(context) else "nothing is"
    occurs = context.find(text)
    hint = f"its first occurrence is at {occurs}" if occurs >= 0 else "the context doesn't have it at all"
    return (
        f"{where}: the answer {text!r} is not at its answer_start {start}: {stands} "
        f"there in a context of {len(context)} characters; {hint}. Correct answer_start."
    )


# The published sets, by version.
PUBLISHED = {"1.1": "hf:rajpurkar/squad", "2.0": "hf:rajpurkar/squad_v2"}
_COLUMNS = ("id", "title", "question", "context", "answers")


def open_questions(source: str, split: str, *, version: str, subset: Optional[str] = None) -> QuestionSet:
    """The questions of a file, or of a split of "hf:NAME", "hf:NAME:CONFIGURATION", "hf:FOLDER" (of data
    files) or a folder that `save_to_disk` wrote. `version` is the run's squad_version, `subset` the
    configuration if the source names none.

    The split "train" has located answers, others keep questions with misplaced ones: see read_questions. In
    version 2.0 a question without answers is impossible; files of version 1.1 are accepted. Raises
    DataError for unreadable data, and for version 2.0's data in a run of version 1.1.
    """
    wanted = "located" if split == "train" else "found"
    source = as_named(source)
    if source.startswith(PREFIX):
        data = _from_hub(source, split, subset, wanted, has_impossible=version == "2.0")
    else:
        data = read_questions(local_path(source), answers=wanted)
    if data.has_impossible and version != "2.0":
        raise DataError(
            f"{source!r} is of version 2.0, with questions that have no answer, and squad_version is "
            f"{version}: set squad_version to 2.0, or use a file of version 1.1"
        )
    return replace(data, has_impossible=version == "2.0")


def _from_hub(
    source: str, split: str, subset: Optional[str], wanted: str, *, has_impossible: bool
) -> QuestionSet:
    rows = _rows(source, split, subset)
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if set(missing) - {"title"}:
        raise DataError(
            f"{source} lacks {', '.join(missing)}; its columns are: {', '.join(rows.column_names)}. Take a "
            f"dataset with SQuAD's: {', '.join(_COLUMNS)} (answers has text and answer_start)"
        )
    entries = (
        (f"row {number}", *_title_and_context(source, f"row {number}", row), row)
        for number, row in enumerate(rows)
    )
    return _question_set(source, f"{source}, split {split},", entries, wanted, has_impossible)


def _rows(source: str, split: str, subset: Optional[str]) -> Any:
    datasets = library(source)
    name, subset = parts_of(source, subset)
    try:
        return rows_of(datasets, name, subset, split, streaming=False)
    except Exception as error:  # names, networks, formats and splits raise errors of many types
        raise DataError(
            f"cannot read {source}, split {split!r}: {type(error).__name__}: {error}. Check name, "
            "configuration (hf:NAME:CONFIGURATION) and network, or give a SQuAD JSON file: "
            "--train-data FILE, --validation-data FILE"
        ) from error
