"""Labelled sentences and pairs: GLUE's TSV files and folders, CSV, JSON lines, Hugging Face data sets."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..files import DataError, local_path, open_plain
from ..hugging_face import PREFIX, as_named, library, parts_of, rows_of
from ..json_files import MOST_BYTES
from .tasks import MISMATCHED, OTHER_COLUMNS, WHOLE, GlueTask

PUBLISHED = "hf:nyu-mll/glue"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
# The names of a split's files in the folders that gluebenchmark.com distributes.
_FILES = {
    TRAIN: ("train", "msr_paraphrase_train"),
    VALIDATION: ("dev", "validation"),
    TEST: ("test", "diagnostic", "msr_paraphrase_test"),
}
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".txt")
_ID_COLUMNS = ("index", "id", "idx", "pairID", "", "Unnamed: 0")
_NO_LABEL = (None, "", "-", "-1", -1)  # as in test sets, and where MNLI's annotators disagreed


@dataclass(frozen=True)
class Example:
    """One text, or two; `label` is a class's name or a number, None in a test set."""

    id: str
    texts: Tuple[str, ...]
    label: Optional[Any]
    part: str = WHOLE


@dataclass(frozen=True)
class ExampleSet:
    """The examples of a split, in order, and the names of the classes; none in a regression."""

    name: str
    examples: Tuple[Example, ...]
    classes: Tuple[str, ...]

    @property
    def is_labelled(self) -> bool:
        return any(example.label is not None for example in self.examples)


@dataclass(frozen=True)
class Columns:
    """Of one's own data: the columns of the texts (none: found by their names) and of the label."""

    texts: Tuple[str, ...] = ()
    label: str = "label"


def read_examples(
    source: Optional[str],
    split: str,
    task: GlueTask,
    *,
    columns: Columns = Columns(),
    classes: Sequence[str] = (),
) -> ExampleSet:
    """The examples of `split`: "train", "validation" or "test".

    `source` is a file, a folder with GLUE's file names or one that `save_to_disk` wrote, "hf:NAME",
    "hf:NAME:CONFIGURATION", or None for the published set. `classes` are those of the training set, if the
    task has none. Unlabelled examples are left out of the first two. Raises DataError for unreadable or
    mislabelled data.
    """
    if source is None and task.columns == ():
        raise DataError(f"glue_task {task.name} needs your own files: give --{_flag(split)} FILE")
    source = PUBLISHED if source is None else as_named(source)
    if source.startswith(PREFIX):
        parts = [(source, part, _rows_of_hub(source, split, part, task)) for part in _parts(split, task)]
    else:
        files = _files(local_path(source), split, task)
        parts = [(str(file), part, _rows(file, task, split)) for file, part in files]
    found: List[Example] = []
    known = tuple(task.classes if task.columns else classes)
    for name, part, rows in parts:
        reader = _Reader(name, part, task, columns, known, is_test=split == TEST)
        found += [example for row in rows for example in reader.examples(*row)]
        if reader.unlabelled:
            print(f"data: {name}: {reader.unlabelled:,} examples without a label are left out", flush=True)
    if not found:
        raise DataError(f"{source} has no examples for {split}: check that it is the data you meant")
    if task.columns or task.is_regression:
        return ExampleSet(source, tuple(found), task.classes)
    names = known or tuple(sorted({str(example.label) for example in found if example.label is not None}))
    if len(names) < 2:
        raise DataError(
            f"{source} has {len(names)} class(es) in column {columns.label!r}: a classifier needs two; "
            "for numbers use --glue-task csv_regression"
        )
    return ExampleSet(source, tuple(found), names)


def _flag(split: str) -> str:
    return {TRAIN: "train-data", VALIDATION: "validation-data", TEST: "predict"}[split]


def _parts(split: str, task: GlueTask) -> Tuple[str, ...]:
    return {TRAIN: (WHOLE,), VALIDATION: task.validation_parts, TEST: tuple(task.leaderboard)}[split]


def _files(path: Path, split: str, task: GlueTask) -> List[Tuple[Path, str]]:
    """The files of a split, each with its part."""
    if not path.is_dir():
        is_mismatched = MISMATCHED in _parts(split, task) and MISMATCHED in path.stem
        return [(path, MISMATCHED if is_mismatched else _parts(split, task)[0])]
    files = []
    for part in _parts(split, task):
        stems = [f"{stem}_{part}" if part else stem for stem in _FILES[split]]
        names = [f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES]
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            raise DataError(
                f"{path} has no file for {split}, such as {names[0]}: check the folder, or name a file"
            )
        files.append((file, part))
    return files


Row = Tuple[str, Mapping[str, Any]]  # its place, and its columns


def _rows(file: Path, task: GlueTask, split: str) -> Iterator[Row]:
    text = _text(file)
    if file.suffix in (".jsonl", ".json"):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{str(file)!r} line {number}", _object(file, number, line)
        return
    is_csv = file.suffix == ".csv"
    # GLUE's TSV files have unpaired quotation marks in their texts.
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="," if is_csv else "\t",
        quoting=csv.QUOTE_MINIMAL if is_csv else csv.QUOTE_NONE,
        strict=is_csv,
    )
    header: Optional[Sequence[str]] = task.headless if task.headless and split != TEST else None
    short: List[int] = []
    try:
        for cells in reader:
            if header is None or (header is task.headless and tuple(cells) == task.headless):
                header = [cell.strip() for cell in cells]
                continue
            if not cells or cells == [""]:
                continue
            if len(cells) < len(header):
                if is_csv or not task.columns:
                    raise DataError(
                        f"{str(file)!r} line {reader.line_num} has {len(cells)} columns, but the header has "
                        f"{len(header)}: correct the line"
                    )
                short.append(reader.line_num)
                continue
            yield f"{str(file)!r} line {reader.line_num}", dict(zip(header, cells))
    except csv.Error as error:
        raise DataError(f"{str(file)!r} line {reader.line_num}: {error}. Correct the line") from error
    if short:  # as in QQP's published files
        print(
            f"warning: {str(file)!r}: {len(short)} lines have too few columns and are left out, line "
            f"{short[0]} first",
            file=sys.stderr,
        )


def _text(file: Path) -> str:
    try:
        with open_plain(file) as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {str(file)!r}: {error.strerror}. Check the path.") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{str(file)!r} holds more than {MOST_BYTES} bytes, the most that is read: split it")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8 text (byte {error.start}): convert it") from error


def _object(file: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{str(file)!r} line {number} is not JSON: {error}. Each line is an object"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{str(file)!r} line {number} is a JSON {type(content).__name__}, not an object")
    return content


def _rows_of_hub(source: str, split: str, part: str, task: GlueTask) -> Iterator[Row]:
    datasets = library(source)
    split = f"{split}_{part}" if part else split
    # GLUE's name has a subset for each task; others have one task, or name theirs: hf:NAME:CONFIGURATION.
    name, subset = parts_of(source, task.name if source == PUBLISHED else None)
    try:
        rows = rows_of(datasets, name, subset, split, streaming=False)
    except Exception as error:  # names, networks, formats and splits raise errors of many types
        raise DataError(
            f"cannot read {source}, split {split!r}: {type(error).__name__}: {error}. Check name and "
            "network, or give GLUE's files: --train-data FOLDER, --validation-data FOLDER"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source}, split {split}, row {number}", row


_SINGLE = ("sentence", "text", "sentence1", "premise", "question")
_SECOND = ("sentence2", "text2", "text_pair", "hypothesis", "question2", "sentence", "context")
_FIRST_OF_PAIR = ("sentence1", "text1", "text", "premise", "question1", "question")


def _other_separator(columns: Sequence[str]) -> str:
    """A sentence about a single column whose name looks like several; otherwise nothing."""
    found = next((mark for mark in ";|\t," if len(columns) == 1 and mark in columns[0]), None)
    if found is None:
        return ""
    return f". The columns seem to be separated by {found!r}: a .csv needs commas, a .tsv tabs"


class _Reader:
    """Examples from the rows of one file, whose columns the first row decides."""

    def __init__(
        self,
        name: str,
        part: str,
        task: GlueTask,
        columns: Columns,
        classes: Tuple[str, ...],
        *,
        is_test: bool,
    ) -> None:
        self._name, self._part, self._task, self._classes = name, part, task, classes
        self._is_test, self._own = is_test, columns
        self._texts: Tuple[str, ...] = ()
        self._label = ""
        self._count = 0
        self.unlabelled = 0

    def examples(self, place: str, row: Mapping[str, Any]) -> Iterator[Example]:
        """The row's example; none if it lacks the label that training and evaluation need."""
        if not self._texts:
            self._texts, self._label = self._find_columns(place, row)
        number = str(self._count)
        self._count += 1
        texts = tuple(self._words(place, row, column) for column in self._texts)
        label = None if self._is_test else self._label_of(place, row)
        if label is None and not self._is_test:
            self.unlabelled += 1
            return
        id_ = next((str(row[column]) for column in _ID_COLUMNS if row.get(column) not in (None, "")), number)
        yield Example(id_, texts, label, self._part)

    def _find_columns(self, place: str, row: Mapping[str, Any]) -> Tuple[Tuple[str, ...], str]:
        task, has = self._task, [column for column in row if column is not None]
        answers = (task.answer_column, "label", "score") if task.columns else (self._own.label,)
        label = next((column for column in answers if column in row), "")
        options = [task.columns, OTHER_COLUMNS.get(task.name, task.columns)] if task.columns else []
        if not task.columns:
            options = [self._own.texts] if self._own.texts else list(_guesses(has, self._own.label))
        texts = next((option for option in options if option and set(option) <= set(has)), ())
        if not texts or (not label and not self._is_test):
            if not task.columns and not label and not self._own.texts:
                options = []  # guesses would take the label's column for a text
            wanted = " or ".join(" and ".join(map(repr, option)) for option in options if option)
            wanted = wanted or "one or two texts (name them with --text-columns)"
            raise DataError(
                f"{place} has the columns {', '.join(map(repr, has))}; glue_task {task.name} needs {wanted}"
                + ("" if self._is_test else f", and {answers[0]!r} (another name: --label-column)")
                + _other_separator(has)
            )
        return texts, label

    def _words(self, place: str, row: Mapping[str, Any], column: str) -> str:
        value = row.get(column)
        if not isinstance(value, str):
            raise DataError(f"{place}: {column!r} is {json.dumps(value, default=str)[:60]}, not a text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can write half of a pair of escapes
            raise DataError(
                f"{place}: {column!r} has half of a surrogate pair: use an undamaged copy"
            ) from error
        return value

    def _label_of(self, place: str, row: Mapping[str, Any]) -> Optional[Any]:
        value = row.get(self._label)
        value = value.strip() if isinstance(value, str) else value
        if self._task.is_regression:
            return self._number(place, value)
        if value in _NO_LABEL and not (value in ("-1", -1, "-") and str(value) in self._classes):
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise DataError(f"{place}: {self._label!r} is {json.dumps(value, default=str)[:60]}, not a class")
        if not self._task.columns and not self._classes:
            return str(value)
        names = self._classes
        if str(value) in names:
            return str(value)
        if self._task.columns and str(value).isdigit() and int(value) < len(names):
            return names[int(value)]
        raise DataError(
            f"{place}: {self._label!r} is {str(value)[:60]!r}, not one of {', '.join(map(repr, names))}"
            + (
                f", or their numbers from 0 to {len(names) - 1}"
                if self._task.columns
                else ", the training set's"
            )
        )

    def _number(self, place: str, value: Any) -> Optional[float]:
        if value in (None, "") or (self._task.columns and value == -1):  # as in STS-B's test set on the hub
            return None
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or abs(number) > 1e9:
            raise DataError(f"{place}: {self._label!r} is {str(value)[:60]!r}, not a number up to 1e9")
        return number


def _guesses(columns: Sequence[str], label: str) -> Iterator[Tuple[str, ...]]:
    """The likely text columns: by their names, otherwise all but label and ids, if they are one or two."""
    for first in _FIRST_OF_PAIR:
        for second in _SECOND:
            if first != second and first in columns and second in columns:
                yield first, second
    for one in _SINGLE:
        if one in columns:
            yield (one,)
    rest = tuple(column for column in columns if column != label and column not in _ID_COLUMNS)
    if len(rest) in (1, 2):
        yield rest
