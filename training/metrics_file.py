"""`metrics.jsonl`: one JSON object per line, which outlives crashes, bit flips and removal under the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Tuple

from data.files import open_plain, write_atomically

from .errors import TrainingError

Record = Dict[str, float]
_REMEDY = "Repair the file or move it away: the run then continues without its earlier records"


class MetricsFile:
    """`metrics.jsonl`, flushed after each line, synced at each checkpoint.

    A resumed run continues after its checkpoint's step: lines of later steps, written before a crash, are
    removed. `expected` is what `sync` returned when the checkpoint was made. If the file differs from it, a
    warning says by how much, the readable records stay, and the file as found is kept beside it.
    """

    def __init__(
        self, path: Path, *, continue_from: int = -1, expected: Optional[Mapping[str, Any]] = None
    ) -> None:
        self._path = path
        kept = b"" if continue_from < 0 else _kept(path, continue_from, expected)
        self._open(kept)

    def _open(self, content: bytes) -> None:
        write_atomically(self._path, content)
        self._file: BinaryIO = self._path.open("a+b")
        self._digest, self._bytes = hashlib.sha256(content), len(content)

    def write(self, record: Record) -> None:
        """Appends one line. Raises TrainingError if it can't be written."""
        line = _line(record)
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self._digest.update(line)
        self._bytes += len(line)

    def sync(self) -> Dict[str, Any]:
        """Makes the file durable and returns its length and SHA-256, for `expected` of a resumed run.

        A file that was removed or replaced under the run is written again. Raises TrainingError if it can't
        be written.
        """
        try:
            os.fsync(self._file.fileno())
            if not self._is_in_place():
                print(
                    f"warning: {self._path} was removed or changed under the run: writing it again",
                    file=sys.stderr,
                )
                self._file.seek(0)
                content = self._file.read()[: self._bytes]
                self._file.close()
                self._open(content)
        except OSError as error:
            raise self._unwritable(error) from error
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def _is_in_place(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._file.fileno())
        return (found.st_dev, found.st_ino, found.st_size) == (ours.st_dev, ours.st_ino, self._bytes)

    def _unwritable(self, error: OSError) -> TrainingError:
        with contextlib.suppress(OSError):  # close() flushes the rest of the buffer
            self._file.close()
        return TrainingError(
            f"{self._path} can't be written ({error.strerror}): free some disk space, then use "
            "--resume: the last checkpoint is safe"
        )

    def close(self) -> None:
        self._file.close()


def _kept(path: Path, continue_from: int, expected: Optional[Mapping[str, Any]]) -> bytes:
    """The lines that a resumed run keeps."""
    try:
        with open_plain(path) as file:
            content = file.read()
    except FileNotFoundError:
        print(f"warning: {path} is missing: the run continues without its earlier records", file=sys.stderr)
        return b""
    except OSError as error:
        raise TrainingError(f"{path} can't be read ({error.strerror}). {_REMEDY}") from error
    intact = False
    if expected is not None:
        known = content[: expected["bytes"]]
        intact = hashlib.sha256(known).hexdigest() == expected["sha256"]
        content = known if intact else content
    records, problems = _records(content)
    # A stop during an evaluation saves a record that the resumed run writes again, with the evaluation.
    kept = [record for record in records if record["step"] <= continue_from]
    if problems or (expected is not None and not intact):
        differs = [*problems, f"it has {len(kept)} readable records up to step {continue_from}"]
        if expected is not None:
            differs.append(f"the run had written {expected['bytes']} bytes, with another SHA-256")
        aside = path.with_name("metrics_damaged.jsonl")
        write_atomically(aside, content)
        print(
            f"warning: {path} isn't what the run wrote: {'; '.join(differs)}. Its readable records stay; the "
            f"file as it was found is {aside}",
            file=sys.stderr,
        )
    return b"".join(_line(record) for record in kept)


def plain(record: Mapping[str, Optional[float]]) -> Dict[str, Optional[float]]:
    """The record for JSON, which has no NaN: a metric without a value is null."""
    return {
        key: value if value is not None and math.isfinite(value) else None for key, value in record.items()
    }


def _line(record: Record) -> bytes:
    return (json.dumps(plain(record), allow_nan=False) + "\n").encode("utf-8")


def read_metrics(path: Path) -> List[Record]:
    """All complete lines of a `metrics.jsonl`, without a last line truncated by a crash.

    Raises TrainingError for a damaged file.
    """
    try:
        with open_plain(path) as file:
            content = file.read()
    except OSError as error:
        raise TrainingError(f"{path} can't be read: {error.strerror}") from error
    records, problems = _records(content)
    if problems:
        raise TrainingError(f"{path}, {problems[0]}. {_REMEDY}")
    return records


def _records(content: bytes) -> Tuple[List[Record], List[str]]:
    """The records of all complete lines, and the problem with each line that isn't one."""
    records: List[Record] = []
    problems: List[str] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        problem = None
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            problem = f"not JSON ({str(error)[:100]})"
        else:
            problem = _problem(record)
        if problem is None:
            records.append(record)
        else:
            problems.append(f"line {number}: {problem}")
    return records, problems


def _problem(record: object) -> Optional[str]:
    if not isinstance(record, dict) or not _is_number(record.get("step")):
        return f"not a record with a step: {json.dumps(record)[:60]}"
    for key, value in record.items():
        if value is not None and not _is_number(value):
            return f"{key} is {json.dumps(value)[:60]}, not a number"
    return None


def _is_number(value: object) -> bool:
    # A JSON number may be larger than any float.
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )
