"""A run's checkpoints: the newest good ones stay, damaged ones move aside, leftovers of killed runs go."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Dict, List, Set, Tuple

from .checkpoints import Checkpoint, read_checkpoint
from .errors import CheckpointError
from .folder import remove, step_folders, step_of

_TEMPORARY = re.compile(r"\.(step_\d{8,})\.\d+(\.replaced)?\.tmp")


class Rotation:
    """Keeps the newest `keep` good checkpoints of an output folder, which this process holds.

    A checkpoint counts only if its checksums are right. This process verifies each one once, and again only
    if a file's size or time changed since.
    """

    def __init__(self, output: Path, keep: int) -> None:
        self._output, self._keep = output, keep
        self._good: Dict[str, _Files] = {}
        self._stuck: Set[Path] = set()  # checkpoints that couldn't be removed

    def saved(self, folder: Path) -> None:
        """After a save: removes all but the newest good checkpoints; the one just written is good."""
        self._good[folder.name] = _files(folder)
        self.remove_old()

    def remove_old(self) -> None:
        """Removes all but the newest good checkpoints. Moves aside the damaged ones that it meets.

        One that can't be removed is named once, and tried again each time.
        """
        folders = step_folders(self._output)
        if len(folders) <= self._keep:
            return
        kept = 0
        for folder in reversed(folders):
            if kept >= self._keep:
                self._remove(folder)
            elif self._is_good(folder):
                kept += 1

    def _remove(self, folder: Path) -> None:
        try:
            remove(folder)
        except OSError as error:
            if folder not in self._stuck:
                print(
                    f"warning: the old checkpoint {folder} can't be removed ({error}). The run goes on and "
                    "tries again at each checkpoint. See who owns it and who has it open, then remove it; "
                    "until then it takes space",
                    file=sys.stderr,
                )
            self._stuck.add(folder)

    def _is_good(self, folder: Path) -> bool:
        try:
            now = _files(folder)
            if self._good.get(folder.name) != now:
                read_checkpoint(folder)
        except (CheckpointError, OSError) as error:
            print(f"warning: a damaged checkpoint: {error}", file=sys.stderr)
            move_aside(folder)
            return False
        self._good[folder.name] = now
        return True


_Files = List[Tuple[str, int, int]]


def _files(folder: Path) -> _Files:
    """Name, size and time of change of all files."""
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())


def move_aside(folder: Path) -> None:
    """Renames a damaged checkpoint, so that it counts no more; says its new name."""
    aside = folder.with_name(f"damaged_{folder.name}")
    number = 1
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = folder.with_name(f"damaged_{folder.name}_{number}")
    try:
        folder.rename(aside)
    except OSError as error:
        print(f"warning: {folder} is damaged but can't be renamed: {error.strerror}", file=sys.stderr)
    else:
        print(f"warning: moved {folder} to {aside.name}, which no run reads", file=sys.stderr)


def move_damaged_aside(output: Path, newest_good: Checkpoint) -> None:
    """Moves aside all checkpoints newer than the newest good one."""
    for folder in step_folders(output):
        if step_of(folder) > newest_good.step:
            move_aside(folder)


def sweep(output: Path) -> None:
    """Removes what killed runs left in `checkpoints`; a save that was complete but for its name gets it."""
    parent = output / "checkpoints"
    found = sorted(path for path in parent.glob(".step_*.tmp") if _TEMPORARY.fullmatch(path.name))
    # Newer content first: a replaced checkpoint comes back only if its replacement is incomplete.
    for path in sorted(found, key=lambda path: ".replaced" in path.name):
        match = _TEMPORARY.fullmatch(path.name)
        assert match is not None
        final = parent / match.group(1)
        try:
            if not final.exists() and not final.is_symlink() and _is_complete(path, step_of(final)):
                path.rename(final)
            else:
                remove(path)
        except OSError as error:
            print(f"warning: {path}, left by a killed run, stays: {error}", file=sys.stderr)


def _is_complete(folder: Path, step: int) -> bool:
    try:
        return read_checkpoint(folder).step == step
    except CheckpointError:
        return False
