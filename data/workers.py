"""Worker processes: started so that signals and kills leave nothing behind, named with their state, ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.popen_spawn_posix
import multiprocessing.resource_tracker
import multiprocessing.spawn
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Set

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


# What a spawned process runs. multiprocessing's main alone writes a traceback if the process that started it
# is killed before it has handed over all arguments (EOFError, UnpicklingError). The kernel closes a dead
# process's pipes a moment before it gives its children another parent.
_START = """\
import os, time
try:
    {start}
except Exception:
    for _ in range(100):
        if os.getppid() != {parent}:
            os._exit(1)
        time.sleep(0.01)
    raise
"""
_start_lock = threading.Lock()


class _Popen(multiprocessing.popen_spawn_posix.Popen):
    def _launch(self, process_obj: Process) -> None:
        original = multiprocessing.spawn.get_command_line

        def silent_without_parent(**arguments: Any) -> List[str]:
            words = list(original(**arguments))
            at = words.index("-c") + 1
            words[at] = _START.format(start=words[at], parent=os.getpid())
            return words

        with _start_lock:
            multiprocessing.spawn.get_command_line = silent_without_parent
            try:
                super()._launch(process_obj)  # type: ignore[misc]
            finally:
                multiprocessing.spawn.get_command_line = original


class _Process(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Process) -> Any:
        return _Popen(process_obj)


class SpawnContext(multiprocessing.context.SpawnContext):
    """multiprocessing's "spawn", whose processes end silently if their parent is killed while they start.

    Start them inside `signals_deferred`; `end_with_parent` covers the time after the start.
    """

    Process = _Process  # type: ignore[assignment]


def end_with_parent() -> None:
    """In a spawned process: from now on it ends with the one that started it, however that one ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "it was spawned"

    def follow(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=follow, args=(parent.sentinel,), daemon=True).start()


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """For starting processes. SIGTERM and Ctrl-C wait for the end of the block.

    A process whose start an exception interrupts waits for its arguments, and those of a pool whose start is
    interrupted wait for work.

    The processes don't get Ctrl-C, which a terminal sends to them too: they inherit the blocked signal, so
    not even one that arrives while they import ends in a traceback. A child that wants to end on Ctrl-C calls
    `end_on_interrupts`.
    """
    # Started with the first process, and unblocks the signal: have it behind us.
    multiprocessing.resource_tracker.ensure_running()
    came: List[int] = []
    handlers = {}
    # Blocking is not enough here: another thread can receive a signal, and Python handles it in this one.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                handlers[number] = signal.signal(number, lambda which, _frame: came.append(which))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for which in came:
            os.kill(os.getpid(), which)


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
