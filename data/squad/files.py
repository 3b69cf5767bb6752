"""Questions from SQuAD's JSON files (plain or gzipped), or from Hugging Face datasets with its columns."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ..files import DataError
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
    """The questions of a file, in order; `has_impossible`: it is of version 2.0."""

    name: str
    questions: Tuple[Question, ...]
    has_impossible: bool


def read_questions(file: Path, *, answers: str = "located") -> QuestionSet:
    """Reads a file of questions.

    `answers` is "located" for training (each has a text, which is at its offset), "texts" for scoring
    (offsets, contexts and the question text are optional) or "none" for prediction: answers in the file are
    ignored, and a question without an id gets its position as id. A file is of version 2.0 if it says so, or
    if any question has the key `is_impossible`. Raises DataError for an invalid file.
    """
    if answers not in ("located", "texts", "none"):
        raise DataError(f'answers is {answers!r}: it takes "located", "texts" or "none".')
    file = Path(file)
    content = read_json(file)
    entries = list(_entries(file, content))
    has_impossible = str(content.get("version", "")).lstrip("v").startswith("2") or any(
        "is_impossible" in entry for _, _, _, entry in entries
    )
    seen: Dict[str, str] = {}
    questions = []
    for where, title, context, entry in entries:
        question = _question(file, where, title, context, entry, answers, has_impossible)
        if question.id in seen:
            raise DataError(
                f"{str(file)!r}: the id {question.id!r} appears at {seen[question.id]} and again at {where}: "
                "predictions are matched by id. Give every question a unique id."
            )
        seen[question.id] = where
        questions.append(question)
    if not questions:
        raise DataError(f"{str(file)!r} has no questions: check that it is the file you meant.")
    return QuestionSet(file.name, tuple(questions), has_impossible)


def _entries(file: Path, content: Any) -> Iterator[Tuple[str, str, Optional[str], Dict[str, Any]]]:
    """Each question's (position in the file, title, context, object)."""
    for article_place, article in _objects(file, "", content, "data"):
        title = str(article.get("title", ""))
        for paragraph_place, paragraph in _objects(file, article_place, article, "paragraphs"):
            context = _text(file, paragraph_place, paragraph, "context", optional=True)
            for place, entry in _objects(file, paragraph_place, paragraph, "qas"):
                yield place, title, context, entry


def _objects(file: Path, place: str, parent: Any, key: str) -> List[Tuple[str, Dict[str, Any]]]:
    if not isinstance(parent, dict) or key not in parent:
        what = f"keys {', '.join(map(repr, parent))}" if isinstance(parent, dict) else type(parent).__name__
        raise DataError(
            f"{str(file)!r}{' at ' + place if place else ''} lacks {key!r} (it has {what}): a SQuAD file is "
            '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}.'
        )
    children = parent[key]
    place = f"{place}.{key}" if place else key
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise DataError(f"{str(file)!r} at {place} is not a list of objects, as SQuAD files have there.")
    return [(f"{place}[{i}]", child) for i, child in enumerate(children)]


def _text(
    file: Path, place: str, parent: Dict[str, Any], key: str, *, optional: bool = False
) -> Optional[str]:
    value = parent.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, str):
        found = "is missing" if key not in parent else f"is {json.dumps(value)[:60]}"
        raise DataError(f"{str(file)!r} at {place}: {key!r} {found}; it must be a text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a pair of escapes
        raise DataError(
            f"{str(file)!r} at {place}: {key!r} has {value[error.start]!a} at character {error.start}, "
            "which is half of a surrogate pair. Use an undamaged copy, or remove it."
        ) from error
    return value


def _question(
    file: Path,
    place: str,
    title: str,
    context: Optional[str],
    entry: Dict[str, Any],
    wanted: str,
    has_impossible: bool,
) -> Question:
    id_ = _text(file, place, entry, "id", optional=wanted == "none")
    id_ = place if id_ is None else id_
    named = f"{place} (id {id_!r})"
    text = _text(file, named, entry, "question", optional=wanted == "texts") or ""
    if context is None and wanted != "texts":
        raise DataError(f"{str(file)!r} at {named}: its paragraph has no 'context' to find an answer in.")
    context = context or ""
    if wanted == "none":
        return Question(id_, title, text, context)
    answers = tuple(
        _answer(
            file, f"{named}, {answer_place[len(place) + 1 :]}", context, answer, located=wanted == "located"
        )
        for answer_place, answer in _objects(file, place, entry, "answers")
    )
    is_impossible = has_impossible and entry.get("is_impossible", not answers)
    if not isinstance(is_impossible, bool):
        raise DataError(f"{str(file)!r} at {named}: is_impossible is {is_impossible!r}, not true or false.")
    if is_impossible and answers:
        raise DataError(
            f"{str(file)!r} at {named}: is_impossible is true, yet it has the answer {answers[0].text!r}. "
            "Remove one of the two."
        )
    if not answers and not is_impossible:
        mend = "is_impossible is false" if has_impossible else "version 1.1 has no unanswerable questions"
        raise DataError(
            f"{str(file)!r} at {named} has no answers, and {mend}. Give it an answer, or set "
            '"is_impossible": true (SQuAD 2.0).'
        )
    return Question(id_, title, text, context, answers, is_impossible)


def _answer(file: Path, place: str, context: str, entry: Dict[str, Any], *, located: bool) -> Answer:
    text = _text(file, place, entry, "text") or ""
    if not located:
        return Answer(text, None)
    start = entry.get("answer_start")
    if not isinstance(start, int) or isinstance(start, bool):
        found = "is missing" if start is None else f"is {json.dumps(start)[:60]}"
        raise DataError(f"{str(file)!r} at {place}: 'answer_start' {found}; it must be a whole number.")
    answer = Answer(text, start)
    check_located(f"{str(file)!r} at {place}", context, answer)
    return answer


def check_located(place: str, context: str, answer: Answer) -> None:
    """Raises DataError with the place unless the answer is in the context at its offset."""
    text, start = answer.text, answer.start
    assert start is not None
    if not text:
        raise DataError(f"{place}: the answer's text is empty. Remove it, or give its text.")
    if start < 0 or context[start : start + len(text)] != text:
        stands = f"{context[start : start + len(text)]!r} is" if 0 <= start < len(context) else "nothing is"
        occurs = context.find(text)
        hint = f"its first occurrence is at {occurs}" if occurs >= 0 else "the context doesn't have it at all"
        raise DataError(
            f"{place}: the answer {text!r} is not at its answer_start {start}: {stands} "
            f"there in a context of {len(context)} characters; {hint}. Correct answer_start."
        )


HUGGING_FACE = "hf:"
# The published sets, by version.
PUBLISHED = {"1.1": "hf:rajpurkar/squad", "2.0": "hf:rajpurkar/squad_v2"}
_COLUMNS = ("id", "title", "question", "context", "answers")


def open_questions(source: str, split: str, *, version: str) -> QuestionSet:
    """The questions, with located answers, of a file or of a split of "hf:NAME" (or a local folder of data
    files). `version` is the run's squad_version.

    In version 2.0 a question without answers is impossible; files of version 1.1 are accepted. Raises
    DataError for unreadable data, and for version 2.0's data in a run of version 1.1.
    """
    if source.startswith(HUGGING_FACE):
        return _from_hub(source, split, has_impossible=version == "2.0")
    data = read_questions(Path(source).expanduser())
    if data.has_impossible and version != "2.0":
        raise DataError(
            f"{source!r} is of version 2.0, with questions that have no answer, and squad_version is "
            f"{version}: set squad_version to 2.0, or use a file of version 1.1"
        )
    return replace(data, has_impossible=version == "2.0")


def _from_hub(source: str, split: str, *, has_impossible: bool) -> QuestionSet:
    rows = _rows(source, split)
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source} lacks {', '.join(missing)}; its columns are: {', '.join(rows.column_names)}. Take a "
            f"dataset with SQuAD's: {', '.join(_COLUMNS)} (answers has text and answer_start)"
        )
    seen: Dict[str, int] = {}
    questions: List[Question] = []
    for number, row in enumerate(rows):
        where = f"{source}, split {split}, row {number} (id {row['id']!r})"
        if row["id"] in seen:
            raise DataError(f"{where} has the same id as row {seen[row['id']]}: give each row a unique id")
        seen[row["id"]] = number
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = tuple(Answer(text, start) for text, start in zip(texts, starts))
        if not answers and not has_impossible:
            raise DataError(
                f"{where} has no answers, and version 1.1 has no unanswerable questions: set squad_version "
                "to 2.0, or use a dataset of version 1.1"
            )
        for answer in answers:
            check_located(where, row["context"], answer)
        questions.append(
            Question(row["id"], row["title"], row["question"], row["context"], answers, not answers)
        )
    if not questions:
        raise DataError(f"{source}, split {split}, has no questions: check name and split")
    return QuestionSet(source, tuple(questions), has_impossible)


def _rows(source: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source} needs the package `datasets`: {error}. Run `pip install datasets`."
        ) from error
    try:
        return datasets.load_dataset(source[len(HUGGING_FACE) :], split=split)
    except Exception as error:  # names, networks, formats and splits raise errors of many types
        raise DataError(
            f"cannot read {source}, split {split!r}: {type(error).__name__}: {error}. Check name and "
            "network, or give a SQuAD JSON file: --train-data FILE, --validation-data FILE"
        ) from error
