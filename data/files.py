"""Shared by `data` and `training`: atomic writes and their leftovers, plain reads, lock files; DataError."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import uuid
from pathlib import Path
from typing import BinaryIO, Iterator, Optional, Tuple


class DataError(ValueError):
    """Invalid or unusable data: says what was asked, what was found and what to do."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a temporary file, fsyncs it, renames it atomically to `path`, fsyncs the folder.

    A symbolic link at `path` is replaced, not followed. An OSError has the file's name, which Python leaves
    out when the disk is full.
    """
    temporary: Optional[Path] = None
    try:
        temporary, stream = _new_temporary(path)
        with stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        if temporary is not None:
            with contextlib.suppress(OSError):  # missing, or can't be removed either: report the first error
                temporary.unlink()
        raise


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


def _new_temporary(path: Path) -> Tuple[Path, BinaryIO]:
    """A new file beside `path`, locked while its writer lives, so that remove_leftovers keeps it."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        stream = temporary.open("xb")
        _lock(stream)
        if os.fstat(stream.fileno()).st_nlink:
            return temporary, stream
        stream.close()  # removed before it was locked


def remove_leftovers(folder: Path, *, recursive: bool = False) -> None:
    """Removes the temporary files that killed writers left in `folder`; those being written stay."""
    for path in folder.rglob(".*") if recursive else folder.glob(".*"):
        if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError), path.open("rb") as stream:  # gone, or not ours to remove
            if _lock(stream, wait=False):
                path.unlink()


def open_plain(path: Path) -> BinaryIO:
    """Opens a file for reading. Raises OSError, also for a folder, a FIFO or a device, which could block."""
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def sync_folder(folder: Path) -> None:
    """Makes a rename durable: otherwise a crash may lose the name, though not the file's content."""
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
    with path.open("ab") as file:
        yield _lock(file)


def _lock(stream: BinaryIO, *, wait: bool = True) -> bool:
    """Locks an open file until it is closed. False on a file system without locks, or if another has it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
