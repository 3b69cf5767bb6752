"""SIGTERM and Ctrl-C ask the run to stop after the current update; a second one stops at once."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Iterator, Optional


class StopRequest:
    """Set by a signal; read between updates."""

    def __init__(self) -> None:
        self.signal_name: Optional[str] = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catches SIGTERM and SIGINT for the length of the block; only the main thread can do this."""
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handler(number: int, _frame: Optional[FrameType]) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name

    for number in previous:
        signal.signal(number, handler)
    try:
        yield request
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def ignore_interrupts(_worker: int) -> None:
    """For loader workers: Ctrl-C reaches the whole process group, but only the run decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
