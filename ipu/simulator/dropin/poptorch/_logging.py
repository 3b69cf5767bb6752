"""The logger `poptorch::python`: levels, destination, limit of repeats, uncaught exceptions."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from types import TracebackType
from typing import TextIO

from ipu_simulator import variables

# PopTorch's numbers; 5 (critical) isn't a valid level.
_LEVELS = {"TRACE": 0, "DEBUG": 1, "INFO": 2, "WARN": 3, "ERR": 4, "OFF": 6}
_PYTHON_LEVELS = {
    "TRACE": logging.DEBUG - 5,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERR": logging.ERROR,
    "OFF": logging.CRITICAL + 10,
}
_POPART_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERR", "CRITICAL", "OFF")

logger = logging.getLogger("poptorch::python")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        return f"[{self.formatTime(record, '%H:%M:%S')}] [poptorch::python] [{level}] {record.getMessage()}"


class _StandardStream(logging.StreamHandler):  # type: ignore[type-arg] # subscripted from Python 3.11 on
    """Writes to the current sys.stderr or sys.stdout, which test runners and notebooks replace."""

    def __init__(self, name: str) -> None:
        logging.Handler.__init__(self)
        self._stream_name = name

    @property
    def stream(self) -> TextIO:
        """The current stream."""
        stream: TextIO = getattr(sys, self._stream_name)
        return stream


class _RepeatLimit(logging.Filter):
    """Limits how often the same text is logged (Options.maxRepeatLogs); the last line says so."""

    def __init__(self) -> None:
        super().__init__()
        self._most = 4
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        with self._lock:
            self._seen[text] += 1
            times = self._seen[text]
        if times == self._most:
            record.msg, record.args = f"{text} [repeated {times} times: not shown from now on]", ()
        return times <= self._most

    def begin(self, most: int) -> None:
        """Sets a new limit and resets the counts."""
        with self._lock:
            self._most = most
            self._seen.clear()


_repeats = _RepeatLimit()


def limit_repeats(most: int) -> None:
    """Sets how often the same text is logged, and resets the counts."""
    _repeats.begin(most)


def _destination() -> logging.Handler:
    name = variables.text(variables.LOG_DESTINATION, "stderr")
    if name in ("stderr", "stdout"):
        return _StandardStream(name)
    return logging.FileHandler(name, mode="w", delay=True)


def setLogLevel(level: str | int) -> None:
    """Sets PopTorch's log level: a name (TRACE, DEBUG, INFO, WARN, ERR, OFF) or its number (0 to 4, 6).

    Raises ValueError for any other name or number.
    """
    if isinstance(level, int):
        if level not in _LEVELS.values():
            raise ValueError("Invalid log level integer")
        level = next(name for name, number in _LEVELS.items() if number == level)
    if level not in _LEVELS:
        raise ValueError(
            f"Unknown log level: {level}. Valid values are DEBUG, ERR, INFO, OFF, TRACE and WARN"
        )
    logger.setLevel(_PYTHON_LEVELS[level])


def setPopartLogLevel(level: str | int) -> None:
    """Only validates PopART's log level, as PopART isn't used. Raises ValueError for an unknown level."""
    known = level in range(len(_POPART_LEVELS)) if isinstance(level, int) else level in _POPART_LEVELS
    if not known:
        raise ValueError(f"Level must be one of {', '.join(_POPART_LEVELS)}")


def _log_uncaught(type_: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(type_, KeyboardInterrupt):
        logger.error("Uncaught exception", exc_info=(type_, value, traceback))
    sys.__excepthook__(type_, value, traceback)


def install() -> None:
    """Installs the log handler, the level, and sys.excepthook, which logs uncaught exceptions."""
    if not logger.handlers:
        handler = _destination()
        handler.setFormatter(_Formatter())
        handler.addFilter(_repeats)
        logger.addHandler(handler)
    setLogLevel(variables.text(variables.LOG_LEVEL, "WARN"))
    sys.excepthook = _log_uncaught
