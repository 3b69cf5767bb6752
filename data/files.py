"""Shared by `data` and `training`: atomic writes and their leftovers, reads that can't fault or block, lock
files; DataError."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import uuid
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, Optional, Sequence, Tuple


def local_path(name: str) -> Path:
    """The path, with ~ as the home folder. One of an unknown user stays as it is, so no file has it."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


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
    if not path.name:  # of . and /
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
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
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # gone, or not ours to remove
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as stream:
                if _lock(stream, wait=False):
                    path.unlink()


def open_plain(path: Path) -> BinaryIO:
    """Opens a file for reading. Raises OSError, also for a folder, a FIFO or a device, which could block."""
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


_SMALL_BYTES = 1 << 20
_MOST_OPEN = 128  # a process may often have 1,024


class OpenFiles:
    """Files that are read by position, for as long as a run lasts. It can be pickled, for worker processes.

    Where a file is cut, or its disk fails, reading raises an error; a memory map would end the process
    (SIGBUS).
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._open: Dict[int, BinaryIO] = {}

    def __getstate__(self) -> Dict[str, Any]:
        return {"paths": self.paths, "_open": {}}

    def size(self, number: int) -> int:
        """The size of file `number` now, in bytes. Raises DataError."""
        return os.fstat(self._file(number).fileno()).st_size

    def read(self, number: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of file `number`. Raises DataError if it has fewer, or can't be read."""
        descriptor = (self._open.get(number) or self._file(number)).fileno()
        try:
            if size <= _SMALL_BYTES:
                content = os.pread(descriptor, size, offset)
                if len(content) == size:
                    return content
            # Before allocating what a damaged length asks for.
            if offset + size > os.fstat(descriptor).st_size:
                raise self._too_short(number, offset + size)
            content = b""
            while len(content) < size:  # the kernel reads at most 2 GB at a time
                part = os.pread(descriptor, size - len(content), offset + len(content))
                if not part:
                    raise self._too_short(number, offset + size)
                content = content + part if content else part
            return content
        except OverflowError:  # an offset of a damaged file
            raise self._too_short(number, offset + size) from None
        except OSError as error:
            raise self._unreadable(number, error) from error

    def _too_short(self, number: int, needed: int) -> DataError:
        ends = os.fstat(self._file(number).fileno()).st_size
        return DataError(
            f"{str(self.paths[number])!r} ends at byte {ends}, but byte {needed} is needed: it is damaged, "
            "or was cut or replaced while it was in use. Restore it."
        )

    def _file(self, number: int) -> BinaryIO:
        if number not in self._open:
            while len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            try:
                self._open[number] = open_plain(self.paths[number])
            except OSError as error:
                raise self._unreadable(number, error) from error
        return self._open[number]

    def _unreadable(self, number: int, error: OSError) -> DataError:
        return DataError(
            f"{str(self.paths[number])!r} can't be read: {error.strerror}. Check that it is there and that "
            "you may read it."
        )


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
