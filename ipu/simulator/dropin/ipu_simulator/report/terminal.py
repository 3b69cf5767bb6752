"""The verdict's table as terminals show it: in colour, with a legend of the bars. In pipes it stays plain."""

from __future__ import annotations

import re
from typing import TextIO

from .. import variables

_RED, _GREEN, _YELLOW, _DIM = "31", "32", "33", "2"
_LEGEND = "  legend: # always live, = live at the peak only, . free, ! over the IPU's memory"
_BAR = re.compile(r"^(  IPU \d+ +\[)([#=.!]+)(\])", re.MULTILINE)
_PATTERNS = (
    (re.compile(r"\bDOES NOT FIT\b"), _RED),
    (re.compile(r"\bFITS\b"), _GREEN),
    (re.compile(r"^  fits(?= )", re.MULTILINE), _GREEN),
    (re.compile(r"^  does not fit yet(?= )", re.MULTILINE), _YELLOW),
    (re.compile(r"^(?:proof|too few IPUs):", re.MULTILINE), _RED),
    (re.compile(r"\bover +[\d.,]+ \w+"), _RED),
)


def has_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours; NO_COLOR turns them off (https://no-color.org)."""
    return stream.isatty() and not variables.text("NO_COLOR") and variables.text("TERM") != "dumb"


def shown(text: str, stream: TextIO) -> str:
    """The text of `report.text` or `report.summary` for a stream: unchanged unless it has colours."""
    if not has_colour(stream):
        return text
    bars = list(_BAR.finditer(text))
    if bars:  # below the last bar
        end = text.index("\n", bars[-1].end())
        text = f"{text[:end]}\n{_painted(_LEGEND, _DIM)}{text[end:]}"
    text = _BAR.sub(lambda bar: bar[1] + _bar(bar[2]) + bar[3], text)
    for pattern, colour in _PATTERNS:
        text = pattern.sub(lambda found, colour=colour: _painted(found[0], colour), text)  # type: ignore[misc]
    return text


def _bar(marks: str) -> str:
    return _painted(marks, _RED if marks.endswith("!") else _GREEN)


def _painted(text: str, colour: str) -> str:
    return f"\033[{colour}m{text}\033[0m"
