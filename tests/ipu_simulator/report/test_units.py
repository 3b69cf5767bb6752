"""Formatting of numbers for readers."""

from __future__ import annotations

import math

import pytest
from ipu_simulator.report.sums import (
    human_bytes,
    human_count,
    human_flop,
    human_rate,
    human_seconds,
    plain_number,
)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1472 * 638_976, "897.0 MiB"),
        (2**30 - 1, "1.0 GiB"),
        (-3 * 2**20, "-3.0 MiB"),
    ],
)
def test_bytes(count: int, expected: str) -> None:
    assert human_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 s"),
        (31e-6, "31 us"),
        (0.9999e-3, "1 ms"),
        (6.11e-3, "6.11 ms"),
        (0.9999, "1.000 s"),
        (2.165, "2.165 s"),
        (59.96, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
        (86399.0, "1 d 00 h"),
        (134_494.0, "1 d 13 h"),
        (-0.412, "-412 ms"),
        (math.inf, "never"),
    ],
)
def test_seconds(seconds: float, expected: str) -> None:
    assert human_seconds(seconds) == expected


def test_counts_and_rates() -> None:
    assert human_flop(256) == "256 FLOP" and human_flop(108.8e9) == "108.8 GFLOP"
    assert human_count(336_226_108) == "336.2 M"
    assert human_count(999_999) == "1.0 M"
    assert human_count(1_234) == "1.2 k"
    assert human_count(999.4) == "999"
    assert human_count(2.5e9) == "2.5 G"
    assert human_count(2.5e12) == "2.5 T"
    assert human_count(2.5e15) == "2.5 P"
    assert human_rate(5178.9) == "5,179"
    assert human_rate(0.8421) == "0.842"
    assert plain_number(638_976) == "638,976"
    assert plain_number(1.088) == "1.088"
