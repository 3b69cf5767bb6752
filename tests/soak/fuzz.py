"""Fuzzing in a child process: changed files in, and only our errors out, within bounds of memory and time."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from types import FrameType

MOST_SECONDS = 10  # of CPU time, of one input
MOST_BYTES = 2_000_000_000  # of address space, beyond what the imports take
MOST_CHARACTERS = 20_000  # of an error


@dataclass
class Figures:
    """Inputs, how many of them were refused, and the faults: (number of the input, what happened)."""

    inputs: int = 0
    refused: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)
    cpu_s: float = 0.0
    is_whole: bool = True  # the time didn't end them


Trial = Callable[[int, Path], bool]  # the number of an input and a folder; whether the input was refused


class _TooSlow(BaseException):
    pass


def end_with_parent() -> None:
    """Makes the kernel kill this process when the one that forked it ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def trials(
    trial: Trial, first: int, count: int, *, deadline_s: float, most_s: float = MOST_SECONDS
) -> Figures:
    """Runs inputs `first` to `first + count`, or as many as the time allows, in a child process.

    The child is started again if an input ends it. An input that takes over `most_s` seconds of CPU time, or
    hangs, is a fault.
    """
    figures, context = Figures(), multiprocessing.get_context("fork")
    number, end, deadline = first, first + count, time.monotonic() + deadline_s
    while number < end and time.monotonic() < deadline:
        # A pipe to each child: a queue would lose results that a child has not written when it ends.
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(trial, number, end, most_s, sender))
        child.start()
        sender.close()
        waited_s, has_ended = 0, False
        while number < end and not has_ended and time.monotonic() < deadline:
            if not receiver.poll(1.0):
                waited_s += 1
                if waited_s < 10 * most_s + 60:
                    continue
                child.kill()  # it hangs outside of Python
            try:
                refused, fault = receiver.recv()
            except EOFError:
                has_ended = True
                child.join()
                refused, fault = False, f"the process ended with status {child.exitcode}"
            figures.inputs += 1
            figures.refused += refused
            if fault:
                figures.faults.append((number, fault))
            number, waited_s = number + 1, 0
        child.kill()
        child.join()
        receiver.close()
    return figures


def _work(trial: Trial, first: int, end: int, most_s: float, results: connection.Connection) -> None:
    def expire(_number: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    end_with_parent()
    signal.signal(signal.SIGPROF, expire)
    now_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MOST_BYTES, resource.RLIM_INFINITY))
    with Path("/dev/null").open("w") as nowhere:
        for standard in (1, 2):
            os.dup2(nowhere.fileno(), standard)
        for number in range(first, end):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    signal.setitimer(signal.ITIMER_PROF, most_s)
                    refused, fault = trial(number, Path(folder)), ""
                    signal.setitimer(signal.ITIMER_PROF, 0)
                except BaseException:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    refused, fault = False, traceback.format_exc()
            results.send((refused, fault))


def of_target(name: str) -> Trial:
    """The trial of a parser: the same number gives the same input."""
    from tests.soak.targets import TARGETS, files_of

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        target.make(Path(folder))
        corpus = files_of(Path(folder))
        target.read(Path(folder))  # accepted as it is

    def trial(number: int, folder: Path) -> bool:
        files = dict(corpus)
        target.change(random.Random(f"{name} {number}"), files)
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        try:
            target.read(folder)
        except target.ours as error:
            said = str(error)
            assert 0 < len(said) < MOST_CHARACTERS, f"an error of {len(said)} characters"
            return True
        return False

    return trial
