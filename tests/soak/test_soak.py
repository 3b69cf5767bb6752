"""A few of the inputs and kills of `./dev soak`, and that the soak notices faults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.soak import __main__ as soak
from tests.soak import fuzz
from tests.soak.targets import TARGETS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*")]

# Inputs that once ended in something else than an error of ours.
REGRESSIONS = {"model": (321, 365), "shards": (87,)}


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_errors_come_out(name: str) -> None:
    trial = fuzz.of_target(name)
    figures = fuzz.trials(trial, 0, 40, deadline_s=300)
    for number in REGRESSIONS.get(name, ()):
        figures.faults += fuzz.trials(trial, number, 1, deadline_s=300).faults
    assert figures.inputs == 40 and figures.faults == []
    assert figures.refused > 5


def test_faults_are_noticed() -> None:
    def trial(number: int, _folder: Path) -> bool:
        if number == 1:
            raise KeyError("ours isn't this")
        if number == 2:
            os._exit(7)
        while number == 3:
            pass
        if number == 4:
            assert bytearray(4_000_000_000)
        return number == 5

    figures = fuzz.trials(trial, 0, 7, deadline_s=300, most_s=0.3)
    assert (figures.inputs, figures.refused) == (7, 1)
    assert [number for number, _ in figures.faults] == [1, 2, 3, 4]
    words = ("KeyError", "status 7", "_TooSlow", "MemoryError")
    assert all(word in text for word, (_, text) in zip(words, figures.faults, strict=True))


def test_the_figures_replace_those_before() -> None:
    page = f"before\n{soak.BEGIN}\nold\n{soak.END}\nafter\n"
    new = soak.written(page, "new")
    assert new == f"before\n{soak.BEGIN}\nnew\n{soak.END}\nafter\n"
    assert soak.written(new, "new") == new
