"""SIGTERM and Ctrl-C.

Before and after training they end the program immediately. During training the first one stops it after the
current update; a second one ends it immediately.
"""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType
from typing import Iterator, Optional


class RunInterrupted(KeyboardInterrupt):
    """A signal ended the run immediately; the argument is the signal's name."""


class StopRequest:
    """True once a signal has requested a stop; `signal_name` is its name."""

    def __init__(self) -> None:
        self.signal_name: Optional[str] = None
        self._deferring = False

    def __bool__(self) -> bool:
        return self.signal_name is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block, the first signal only makes the request true."""
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
        before, self._deferring = self._deferring, False
        try:
            if self.signal_name is not None:
                raise RunInterrupted(self.signal_name)
            yield
        finally:
            self._deferring = before

    def _handle(self, number: int, _frame: Optional[FrameType]) -> None:
        name = signal.Signals(number).name
        if self or not self._deferring:
            raise RunInterrupted(name)
        self.signal_name = name


class TimedOut(Exception):
    """Raised inside `time_limit`."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimedOut inside the block after `seconds` (0: never). Only the main thread can do this.

    A timer that runs already goes on after the block; inside it doesn't fire.
    """

    def expire(_number: int, _frame: Optional[FrameType]) -> None:
        raise TimedOut

    if not seconds:
        yield
        return
    # Disarmed first: an alarm on its way is for the handler that is still set.
    left_s, every_s = signal.setitimer(signal.ITIMER_REAL, 0.0)
    previous, began = signal.signal(signal.SIGALRM, expire), time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
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
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
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
