"""SIGTERM and Ctrl-C.

Before and after training they end the program immediately. During training the first one stops it after the
current update; a second one ends it immediately: as an exception (RunInterrupted), or, where the signals had
a handler with a method `interrupted` (that of a program), by ending the process.
"""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType
from typing import Any, Iterator, Mapping, Optional


class RunInterrupted(KeyboardInterrupt):
    """A signal ended the run immediately; the argument is the signal's name."""


class StopRequest:
    """True once a signal has requested a stop; `signal_name` is its name."""

    def __init__(self, handlers: Optional[Mapping[int, Any]] = None) -> None:
        """`handlers`: those that the signals had before."""
        self.signal_name: Optional[str] = None
        self._handlers = handlers or {}
        self._deferring = self._awaited = False

    def __bool__(self) -> bool:
        return self.signal_name is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block, the first signal only makes the request true.

        Raises RunInterrupted at the start if the request is true already: code that a signal interrupted may
        have lost the exception.
        """
        if self.signal_name is not None:
            raise RunInterrupted(self.signal_name)
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block, a signal raises RunInterrupted also within `deferred`: for waits without an end.

        Raises RunInterrupted at the start if the request is true already.
        """
        self._awaited = True
        try:
            if self.signal_name is not None:
                raise RunInterrupted(self.signal_name)
            yield
        finally:
            self._awaited = False

    def stop(self, name: str) -> None:
        """Requests a stop, as a first signal does, in the name of another part of the program."""
        self.signal_name = name
        if not self._deferring or self._awaited:
            raise RunInterrupted(name)

    def _handle(self, number: int, _frame: Optional[FrameType]) -> None:
        is_first, name = self.signal_name is None, signal.Signals(number).name
        interrupted = getattr(self._handlers.get(number), "interrupted", None)
        if interrupted is not None and not (self._deferring and is_first):
            interrupted(number, again=not is_first)
        if not is_first:
            raise RunInterrupted(name)
        self.stop(name)


class TimedOut(Exception):
    """Raised inside `time_limit`."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimedOut inside the block after `seconds` (0: never). Only the main thread can do this.

    A timer that runs already goes on after the block; inside it doesn't fire.
    """

    inside = True

    def expire(_number: int, _frame: Optional[FrameType]) -> None:
        if inside:
            raise TimedOut

    if not seconds:
        yield
        return
    # Disarmed first: an alarm on its way is for the handler that is still set.
    left_s, every_s = signal.setitimer(signal.ITIMER_REAL, 0.0)
    previous, began = signal.signal(signal.SIGALRM, expire), time.monotonic()
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            inside = False  # an alarm that comes now must not skip what follows
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # discards an alarm that another thread still holds
        signal.signal(signal.SIGALRM, previous)
        if left_s:
            elapsed_s = time.monotonic() - began
            signal.setitimer(signal.ITIMER_REAL, max(left_s - elapsed_s, 1e-6), every_s)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handles SIGTERM and SIGINT inside the block; only the main thread can do this."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    request = StopRequest({int(number): old for number, old in previous.items()})
    for number in previous:
        signal.signal(number, request._handle)
    try:
        yield request
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def ignore_interrupts(_worker: int) -> None:
    """For DataLoader workers: a signal may reach all processes of a run, but the main one decides to stop.

    A worker ignores Ctrl-C and the first SIGTERM. A second SIGTERM ends it: the DataLoader sends SIGTERM to
    workers that don't exit in time, until they do.
    """

    def ignore_the_first(_number: int, _frame: Optional[FrameType]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_the_first)
