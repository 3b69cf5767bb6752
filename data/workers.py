"""Worker processes that hang: named with their state, and ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from pathlib import Path
from typing import Iterable, List, Set

# States of proc(5).
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or the network",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "dead",
}
Process = multiprocessing.process.BaseProcess


def started_since(before: Set[int]) -> List[Process]:
    """This process's children that `multiprocessing` started and whose process number isn't in `before`."""
    return [child for child in multiprocessing.active_children() if child.pid not in before]


def process_numbers() -> Set[int]:
    """Those of the children that run now, for `started_since`."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def described(children: Iterable[Process]) -> str:
    """Names, process numbers and states, for an error message."""
    words = [f"{child.name} (process {child.pid}, {_state(child.pid)})" for child in children]
    return ", ".join(words) or "no worker process is left"


def _state(number: object) -> str:
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        letter = status.rpartition(")")[2].split()[0]  # the name before may have blanks and brackets
        return _STATES.get(letter, f"state {letter}")
    return "ended"


def end(children: Iterable[Process], *, patience_s: float = 0.0) -> List[str]:
    """Waits for children, then kills those that are left, stopped ones too; describes them as they were."""
    children = list(children)
    deadline = time.monotonic() + patience_s
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    left = [child for child in children if child.is_alive()]
    described_as = [described([child]) for child in left]
    for child in left:
        child.kill()
    for child in left:
        child.join()
    return described_as
