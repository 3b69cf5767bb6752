"""What the rest of `data` shares: its error, files written whole or not at all, one process at a time."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Iterator


class DataError(ValueError):
    """A user's mistake about data: says what was asked, what was found and what to do."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside `path` under a name of its own, flushes to the disk, renames, flushes the folder.

    An OSError names the file, which Python leaves out when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(OSError):  # not made, or not to be removed either: the first error counts
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Makes the folder's names durable: a rename may otherwise be lost though the file's content isn't."""
    if os.name == "nt":
        return  # folders can't be opened there
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock file at path, waiting for any other holder. Yields False where files can't be locked.

    The lock goes with its process, however that ends. Nobody deletes the file: that would let two in.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield False
        return
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError:  # a file system without locks
            locked = False
        yield locked
