"""JSON from files that anyone may have made: gzipped or not, with a bound on what is held in memory."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, Dict, List, Tuple

from .files import DataError, open_plain

MOST_BYTES = 1 << 29  # of one file, uncompressed; SQuAD 2.0's training set has 42 MB
_GZIP_MAGIC = b"\x1f\x8b"


def read_json(file: Path, *, most_bytes: int = MOST_BYTES, lines: bool = False) -> Any:
    """The content of a JSON file, gzipped or not (by its first bytes). DataError says where it is invalid.

    Refuses a file with more than `most_bytes`, uncompressed, and an object that has a key twice. `lines`: a
    file of JSON lines is a list.
    """
    file = Path(file)
    try:
        text = _read(file, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(file)!r} is not UTF-8 text (byte {error.start}): JSON files are. Convert it."
        ) from error
    try:
        return _parsed(file, text)
    except json.JSONDecodeError as error:
        if not (lines and error.msg == "Extra data"):  # after a whole value
            raise _invalid(file, error, error.lineno) from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(_parsed(file, line))
            except json.JSONDecodeError as error:
                raise _invalid(file, error, number) from error
    return found


def _parsed(file: Path, text: str) -> Any:
    def refuse_repeated(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise DataError(
                f"{str(file)!r} has the key {repeated[:80]!r} {keys.count(repeated)} times in one object, "
                "and one value only could be used: remove the others."
            )
        return content

    try:
        return json.loads(text, object_pairs_hook=refuse_repeated)
    except (json.JSONDecodeError, DataError):
        raise
    except (RecursionError, ValueError) as error:  # deeply nested brackets, or numbers of thousands of digits
        raise DataError(f"{str(file)!r} can't be read as JSON: {error}. Take an undamaged copy.") from error


def _invalid(file: Path, error: json.JSONDecodeError, line: int) -> DataError:
    return DataError(
        f"{str(file)!r} is not JSON: {error.msg} at line {line}, column {error.colno} "
        f"(character {error.pos} of {len(error.doc)}). Use an undamaged copy, or fix it there."
    )


def _read(file: Path, most_bytes: int) -> bytes:
    try:
        with open_plain(file) as stream:
            is_gzip = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            stream.seek(0)
            raw = (gzip.GzipFile(fileobj=stream) if is_gzip else stream).read(most_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{str(file)!r} is a damaged gzip file: {error}. Take an undamaged copy.") from error
    except OSError as error:
        raise DataError(f"cannot read {str(file)!r}: {error.strerror}. Check the path.") from error
    if len(raw) > most_bytes:
        raise DataError(
            f"{str(file)!r} holds more than {most_bytes} bytes{' when decompressed' if is_gzip else ''}, the "
            "most that is read: check that it is the file you meant, or split it."
        )
    return raw
