import csv
import json
import math

import numpy as np
import pytest

from benchmarks.results import Column, Result, mean_and_half_width, publish, quartiles

RESULT = Result(
    "example",
    "An example",
    (
        Column("name", "name"),
        Column("loss", "loss", "measured", "{:.2f}"),
        Column("hours", "hours", "predicted", "{:.1f}"),
    ),
    [{"name": "a", "loss": 1.234567, "hours": 2.0, "hidden": 5}, {"name": "b", "loss": math.nan}],
    ["A note."],
    extra={"list": (1, math.inf)},
)


def test_the_table_says_where_each_number_comes_from():
    lines = RESULT.table().splitlines()
    heading = next(index for index, line in enumerate(lines) if line.startswith("name"))
    assert lines[heading + 1].split() == ["measured", "predicted"]
    assert lines[heading + 3].split() == ["a", "1.23", "2.0"]
    assert lines[heading + 4].split() == ["b", "nan", "-"]
    assert lines[-1] == "A note."


def test_the_page_has_the_table_and_the_picture():
    assert RESULT.markdown().splitlines() == [
        "## An example",
        "",
        "| name | loss (measured) | hours (predicted) |",
        "| --- | ---: | ---: |",
        "| a | 1.23 | 2.0 |",
        "| b | nan | - |",
        "",
        "A note.",
        "",
        "![An example](example.png)",
    ]


def test_files_hold_the_numbers_unrounded(tmp_path):
    publish(RESULT, tmp_path, lambda figure: figure.subplots().plot([1, 2]))
    whole = json.loads((tmp_path / "example.json").read_text())
    assert [column["origin"] for column in whole["columns"]] == ["", "measured", "predicted"]
    assert whole["rows"][0] == {"name": "a", "loss": 1.234567, "hours": 2.0, "hidden": 5}
    assert whole["rows"][1]["loss"] is None  # JSON has no NaN
    assert whole["list"] == [1, None]
    assert whole["host"]["cores"] >= 1
    with (tmp_path / "example.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"name": "a", "loss": "1.234567", "hours": "2.0"}
    assert rows[1]["hours"] == ""
    assert (tmp_path / "example.png").read_bytes().startswith(b"\x89PNG")


def test_a_number_has_to_come_from_somewhere():
    with pytest.raises(AssertionError, match="guessed"):
        Column("loss", "loss", "guessed")


def test_the_interval_is_students():
    # Worked by hand: mean 2, standard deviation 1, three samples: 4.303 / sqrt(3).
    mean, half_width = mean_and_half_width([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-12)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(1)
    trials, samples = 4000, 4
    covered = 0
    for row in draw.normal(5.0, 2.0, (trials, samples)):
        mean, half_width = mean_and_half_width(list(row))
        covered += abs(mean - 5.0) <= half_width
    # 95% of 4000, within three standard deviations of a binomial count.
    assert abs(covered - 0.95 * trials) < 3 * math.sqrt(0.95 * 0.05 * trials)


def test_one_sample_has_no_interval():
    mean, half_width = mean_and_half_width([7.0])
    assert mean == 7.0
    assert math.isnan(half_width)


@pytest.mark.parametrize("count", range(1, 9))
def test_quartiles_are_numpys(count):
    samples = list(np.random.default_rng(count).normal(size=count))
    assert quartiles(samples) == pytest.approx(tuple(np.percentile(samples, [25, 50, 75])), abs=1e-12)
