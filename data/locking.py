"""One process at a time prepares the same data."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator


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
