"""A few of the inputs and kills of `./dev soak`, and that the soak notices faults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.soak import fuzz
from tests.soak.figures import BEGIN, END, Record, written
from tests.soak.fuzz import Figures
from tests.soak.targets import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*")

# Inputs that once ended in something else than an error of ours.
REGRESSIONS = {"model": (321, 365), "shards": (87,)}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.slow
def test_only_our_errors_come_out(name: str) -> None:
    trial = fuzz.of_target(name)
    figures = fuzz.trials(trial, 0, 40, deadline_s=300)
    for number in REGRESSIONS.get(name, ()):
        figures.faults += fuzz.trials(trial, number, 1, deadline_s=300).faults
    assert figures.inputs == 40 and figures.faults == []
    assert figures.refused > 5


@pytest.mark.slow
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


def test_the_figures_of_a_job_replace_those_before_and_others_stay(tmp_path: Path) -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    counts = {"parser: a": 1000, "kills: b": 8}
    record = Record(tmp_path / "soak.json", counts, "abc")
    record.entries["parser: a"].add(0, Figures(500, 20, cpu_s=3.0))
    record.entries["kills: b"].add(1, Figures(4, 5, [(6, "lost")], cpu_s=9.4))
    record.save()
    page = written(page, "first", record.entries)
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    date = record.entries["kills: b"].date
    assert f"| parser: a | 500 of 1,000 | 20 | 0 | 3 s | {date} | abc |" in page
    assert f"| kills: b | 4 of 8 | 5 | 1 | 9 s | {date} | abc |" in page

    again = Record(tmp_path / "soak.json", {"parser: a": 1000}, "abc")  # goes on
    assert again.entries["parser: a"].parts == [0]
    again.entries["parser: a"].add(1, Figures(500, 10, cpu_s=2.0))
    again.save()
    page = written(page, "second", again.entries)
    assert f"| parser: a | 1,000 | 30 | 0 | 5 s | {date} | abc |" in page and "| kills: b | 4 of 8 |" in page
    assert "first" not in page and "second" in page and page.count("| parser: a |") == 1
    other = Record(tmp_path / "soak.json", counts, "other commit")
    assert other.entries["parser: a"].parts == [] and other.entries["parser: a"].inputs == 0


@pytest.mark.slow
def test_a_part_that_the_time_ended_is_done_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "soak.json", {"parser: a": 1000}, "abc")
    entry = record.entries["parser: a"]
    entry.add(0, Figures(200, 20, [(7, "a fault")], is_whole=False))
    assert entry.parts == [] and entry.inputs == 0 and entry.faults == [(7, "a fault")]
