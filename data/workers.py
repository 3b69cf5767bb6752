"""Worker processes that hang: named with their state, and ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from pathlib import Path
from typing import Iterable, Iterator, List, Set

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


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that are spawned inside the block don't get Ctrl-C, which a terminal sends to them too.

    They inherit the blocked signal, so not even one that arrives while they import ends in a traceback. This
    process gets it when the block ends. A child that wants to end on Ctrl-C calls `end_on_interrupts`.
    """
    # Started with the first process, and unblocks the signal: have it behind us.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_on_interrupts() -> None:
    """In a child that was spawned with the signal blocked: from now on Ctrl-C ends it, silently."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def described(children: Iterable[Process]) -> str:
    """Names, process numbers and states, for an error message."""
    words = [f"{child.name} (process {child.pid}, {_state(child.pid)})" for child in children]
    return ", ".join(words) or "no worker process is left"


def is_stopped(child: Process) -> bool:
    """Whether a signal or a debugger has stopped the process."""
    return _letter(child.pid) in ("T", "t")


def _state(number: object) -> str:
    letter = _letter(number)
    return _STATES.get(letter, f"state {letter}") if letter else "ended"


def _letter(number: object) -> str:
    """The state's letter of proc(5); "" if the process has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[0]  # the name before may have blanks and brackets
    return ""


def end(children: Iterable[Process], *, patience_s: float = 0.0) -> List[str]:
    """Waits for children, then kills those that are left, stopped ones too; describes them as they were."""
    children = list(children)
    deadline = time.monotonic() + patience_s
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    left = [child for child in children if child.is_alive() and not _is_gone(child)]
    described_as = [described([child]) for child in left]
    with _deaths_expected():
        for child in left:
            child.kill()
        for child in left:
            child.join()
    return described_as


def _is_gone(child: Process) -> bool:
    """Whether no such process is left: `is_alive` says so late if another thread has waited for its end."""
    assert child.pid is not None, "it was started"
    try:
        os.kill(child.pid, 0)
    except ProcessLookupError:
        return True
    return False


@contextlib.contextmanager
def _deaths_expected() -> Iterator[None]:
    """PyTorch's handler of SIGCHLD raises an error in the main thread for each killed DataLoader worker."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)
