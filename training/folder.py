"""The output folder: held by one run at a time, files replaced atomically, links to files not followed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Iterator, List

import data.files

from .errors import CheckpointError, TrainingError


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path`, a file or a symbolic link, by a file with `text`, atomically and durably."""
    data.files.write_atomically(path, text.encode("utf-8"))


def fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError, also if it isn't a regular file."""
    digest = hashlib.sha256()
    with data.files.open_plain(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Removes a folder with its content, a file, or a symbolic link without its target. Raises OSError."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Locks `folder` for this process; the kernel releases the lock when the process exits, for any reason.

    Removes temporary files of killed runs. Raises TrainingError if another process holds the lock or the
    folder can't be created.
    """
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(str(lock), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TrainingError(
                f"{lock} is a symbolic link, which a run doesn't follow: remove it, or use another --output"
            ) from error
        raise TrainingError(f"the output folder {folder} can't be used: {error}") from error
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        try:
            # A record lock instead of flock: forked DataLoader workers don't inherit it, and they outlive a
            # killed parent by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().strip() or "unknown"
            raise TrainingError(
                f"the output folder {folder} is in use by another run (process {holder}): "
                "wait for it, stop it, or use another --output"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        data.files.remove_leftovers(folder)
        yield


STEP_NAME = re.compile(r"step_(\d{8,})")


def step_folders(output: Path) -> List[Path]:
    """The checkpoints in an output folder, oldest first, sorted by number, not by name.

    Raises CheckpointError if the folder can't be read: it may have some.
    """
    folder = output / "checkpoints"
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(
            f"{folder} can't be read ({error.strerror}), so its checkpoints aren't known: make it "
            "readable, or use another --output"
        ) from error
    return sorted((path for path in paths if STEP_NAME.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    match = STEP_NAME.fullmatch(folder.name)
    assert match is not None
    return int(match.group(1))
