"""Fuzzing in a child process: changed files in, and only our errors out, within bounds of memory and time."""

from __future__ import annotations

import multiprocessing
import queue
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
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

    def row(self, name: str) -> str:
        return f"| {name} | {self.inputs:,} | {self.refused:,} | {len(self.faults)} |"


Trial = Callable[[int, Path], bool]  # the number of an input and a folder; whether the input was refused


class _TooSlow(BaseException):
    pass


def trials(
    trial: Trial, first: int, count: int, *, deadline_s: float, most_s: float = MOST_SECONDS
) -> Figures:
    """Runs inputs `first` to `first + count`, or as many as the time allows, in a child process, which is
    started again if one ends it. An input that takes over `most_s` seconds of CPU time, or hangs, is a fault."""
    figures, context = Figures(), multiprocessing.get_context("fork")
    done: multiprocessing.Queue = context.Queue()
    number, end, deadline = first, first + count, time.monotonic() + deadline_s
    while number < end and time.monotonic() < deadline:
        child = context.Process(target=_work, args=(trial, number, end, most_s, done))
        child.start()
        waited_s, fault = 0.0, ""
        while number < end and time.monotonic() < deadline and not fault.startswith("the process"):
            try:
                refused, fault = done.get(timeout=1.0)
            except queue.Empty:
                waited_s += 1.0
                if child.is_alive() and waited_s < 10 * most_s + 5:
                    continue
                child.kill()  # hangs outside of Python, or has ended
                child.join()
                refused, fault = False, f"the process ended with status {child.exitcode}"
            figures.inputs += 1
            figures.refused += refused
            if fault:
                figures.faults.append((number, fault))
            number, waited_s = number + 1, 0.0
        if number == end:
            child.join(timeout=30)
        child.kill()
        child.join()
    return figures


def _work(trial: Trial, first: int, end: int, most_s: float, done: multiprocessing.Queue) -> None:
    def expire(_number: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    signal.signal(signal.SIGPROF, expire)
    now_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MOST_BYTES, resource.RLIM_INFINITY))
    with Path("/dev/null").open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        for number in range(first, end):
            with tempfile.TemporaryDirectory() as folder:
                signal.setitimer(signal.ITIMER_PROF, most_s)
                try:
                    refused, fault = trial(number, Path(folder)), ""
                except BaseException:
                    refused, fault = False, traceback.format_exc()
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
            done.put((refused, fault))
    done.close()
    done.join_thread()


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
