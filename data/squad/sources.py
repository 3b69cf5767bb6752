"""Where questions come from: a SQuAD JSON file, or a Hugging Face dataset that has SQuAD's columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

from data.errors import DataError
from data.squad.files import Answer, Question, QuestionSet, check_located, read_questions

HUGGING_FACE = "hf:"
# The published sets, by version.
PUBLISHED = {"1.1": "hf:rajpurkar/squad", "2.0": "hf:rajpurkar/squad_v2"}
_COLUMNS = ("id", "title", "question", "context", "answers")


def open_questions(source: str, split: str, *, version: str) -> QuestionSet:
    """The questions, with located answers, of a file or of a split of "hf:NAME" (a local folder of data files
    works the same). `version` is the squad_version that the run is of.

    In version 2.0 a question without answers is an impossible one, and a file of version 1.1 will do. Raises
    DataError for what can't be read, and for version 2.0's data in a run of 1.1.
    """
    if source.startswith(HUGGING_FACE):
        return _from_hub(source, split, has_impossible=version == "2.0")
    data = read_questions(Path(source).expanduser())
    if data.has_impossible and version != "2.0":
        raise DataError(
            f"{source!r} is of version 2.0, with questions that have no answer, and squad_version is "
            f"{version}: set squad_version to 2.0, or take a file of version 1.1"
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
            raise DataError(f"{where} has the id of row {seen[row['id']]} again: give each its own")
        seen[row["id"]] = number
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = tuple(Answer(text, start) for text, start in zip(texts, starts))
        if not answers and not has_impossible:
            raise DataError(
                f"{where} has no answers, and version 1.1 has no unanswerable questions: set squad_version "
                "to 2.0, or take a dataset of version 1.1"
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
    except Exception as error:  # names, networks, formats and splits fail with many types
        raise DataError(
            f"cannot read {source}, split {split!r}: {type(error).__name__}: {error}. Check name and "
            "network, or give a SQuAD JSON file: --train-data FILE, --validation-data FILE"
        ) from error
