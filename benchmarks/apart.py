"""A contender in a process of its own, as its user runs it: nothing that the other side does reaches it."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, List, Optional

from config import ConfigError

from .contenders import Contender

# In the other process: the contender whose steps are asked for.
_contender: List[Contender] = []


class Apart:
    """A process that takes one contender after another; a context manager, which ends it.

    :param name: of the side, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Not forked: this process may have threads, and an allocator that was set up.
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def contender(self, build: Callable[..., Contender], *arguments: Any) -> Contender:
        """What `build(*arguments)` makes there, in place of the one before. Raises what `build` raises."""
        # Ctrl-C is this process's to answer; the other one inherits that it isn't its own.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            made = self._pool.submit(_make, build, arguments)
        finally:
            signal.signal(signal.SIGINT, before)
        self._result(made)
        return Contender(lambda: float(self._result(self._pool.submit(_step_s))))

    def _result(self, asked: Any) -> Any:
        try:
            return asked.result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"the process of {self._name} ended in the middle of a step: perhaps for want of memory; "
                "choose smaller comparisons with --only"
            ) from error

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: Optional[object]) -> None:
        self._pool.shutdown()


def _make(build: Callable[..., Contender], arguments: Any) -> None:
    _contender.clear()
    _contender.append(build(*arguments))


def _step_s() -> float:
    return _contender[0].step_s()
