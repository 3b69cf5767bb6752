"""The files of a corpus, all of one kind: of a path, a folder or a glob."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

from ..files import DataError, local_path
from .kinds import ROWS, TEXT, TFRECORD, is_text_file, kind_of, refuse
from .text import unreadable


class Found(NamedTuple):
    """Files of one kind (see kinds.py), sorted. `notes`: of a folder, how many were read and passed over."""

    kind: str
    files: List[Path]
    notes: Tuple[str, ...] = ()


def find_files(source: str) -> Found:
    """The files of a path, a folder (searched recursively) or a glob.

    A file or glob selects exactly what it matches. In a folder, files are passed over that are hidden, or
    are neither text files by their name nor rows of text nor TFRecords by their first bytes. Raises DataError
    if nothing is found, for files of two kinds, and for a text file that isn't text.
    """
    path = local_path(source)
    if path.is_file():
        return _of_one_kind(source, {path: _kind(path)})
    if path.is_dir():
        return _in_folder(path)
    matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    files = sorted(match for match in matches if match.is_file())
    if not files:
        where = f"{str(path)!r}" if path.is_absolute() else f"{str(path)!r} in {str(Path.cwd())!r}"
        raise DataError(f"no file matches {where}. Check the path, or the pattern if it is one.")
    return _of_one_kind(source, {file: _kind(file) for file in files})


def _in_folder(folder: Path) -> Found:
    kinds: Dict[Path, str] = {}
    others: List[Path] = []
    for file in sorted(_files_below(folder)):
        kind = _kind(file)
        if is_text_file(file) or kind == TFRECORD or kind in ROWS:
            kinds[file] = kind
        else:
            others.append(file)
    if not kinds:
        names = f" It has {others[0].name!r}." if others else ""
        raise DataError(
            f"no text file in folder {str(folder)!r} or below: looked for *.txt and *.text, also compressed, "
            f"and for rows of text (JSON, CSV, TSV, Parquet).{names} Use a glob if their names are different."
        )
    found = _of_one_kind(str(folder), kinds)
    passed_over = f", {len(others)} passed over" if others else ""
    example = f" ({others[0].name!r} for example: a glob would read it)" if others else ""
    return found._replace(notes=(f"folder {folder}: {len(kinds)} files read{passed_over}{example}",))


def _of_one_kind(source: str, kinds: Dict[Path, str]) -> Found:
    first, kind = next(iter(kinds.items()))
    for file, other in kinds.items():
        if other not in (TEXT, TFRECORD, *ROWS):
            raise refuse(file, other)
        if other != kind:
            raise DataError(
                f"{source!r} has files of two kinds: {first.name!r} is {kind}, {file.name!r} is {other}. "
                f"Name those to read with a glob, for example '{file.parent / ('*' + file.suffix)}'."
            )
    return Found(kind, sorted(kinds))


def _kind(file: Path) -> str:
    try:
        return kind_of(file)
    except OSError as error:
        raise unreadable(file, error) from error


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path
