"""Files that are either whole or absent, and folders that one run holds at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Iterator

import data.atomic

from .errors import TrainingError


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable; data without its name is lost in a power cut."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step, durably."""
    data.atomic.write_atomically(path, text.encode("utf-8"))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; the kernel lets go when the process ends, however it ends.

    Raises TrainingError if another process holds it or it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"the output folder {folder} can't be used: {error}") from error
    with file:
        try:
            # A record lock, and not flock: forked loader workers don't inherit it, and they outlive a killed
            # parent by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TrainingError(
                f"the output folder {folder} is in use by another run (process {holder}): "
                "wait for it, stop it, or give another --output"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
