"""Colours and the legend, on terminals only."""

from __future__ import annotations

import io
import re

import pytest
from ipu_simulator import report

from tests.ipu_simulator.report.samples import fitting, overflowing

VERDICTS = {"fits": fitting, "overflows": overflowing}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return re.sub(r"\033\[\d+m", "", text)


@pytest.mark.parametrize("which", VERDICTS)
def test_a_pipe_gets_the_text_unchanged(which: str) -> None:
    text = report.text(VERDICTS[which]())
    assert report.shown(text, io.StringIO()) == text and "\033" not in text


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_a_terminal_without_colours_too(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "dumb")
    text = report.text(fitting())
    assert report.shown(text, Terminal()) == text


@pytest.mark.parametrize("which", VERDICTS)
def test_a_terminal_gets_colours_and_a_legend_and_the_same_words(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    verdict = VERDICTS[which]()
    text = report.text(verdict)
    shown = report.shown(text, Terminal())
    lines = plain(shown).splitlines()
    (legend,) = [number for number, line in enumerate(lines) if line.startswith("  legend: ")]
    assert [line for number, line in enumerate(lines) if number != legend] == text.splitlines()
    assert "[" in lines[legend - 1] and "]" in lines[legend - 1] and max(map(len, lines)) <= 110
    green, red = "\033[32mFITS\033[0m", "\033[31mDOES NOT FIT\033[0m"
    assert (green if which == "fits" else red) in shown
    assert shown.count("\033[0m") * 2 == shown.count("\033[")
    assert ("\033[31m" in shown) == (which == "overflows")
    summary = report.shown(report.summary(verdict, 0.5), Terminal())
    assert plain(summary) == report.summary(verdict, 0.5) and "\033[" in summary
