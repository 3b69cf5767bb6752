"""Shared by `data`: its error, atomic writes, and lock files."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Iterator


class DataError(ValueError):
    """Invalid or unusable data: says what was asked, what was found and what to do."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a temporary file, fsyncs it, renames it atomically to `path`, fsyncs the folder.

    An OSError has the file's name, which Python leaves out when the disk is full.
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
        with contextlib.suppress(OSError):  # missing, or can't be removed either: report the first error
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable: otherwise a crash may lose the name, though not the file's content."""
    if os.name == "nt":
        return  # folders can't be opened on this platform
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Holds the lock file at path, waiting for any other holder. Yields False if files can't be locked.

    The operating system releases the lock when the process ends, however it ends. The file is never deleted,
    because that would admit two holders.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError:  # a file system without locks
            locked = False
        yield locked
