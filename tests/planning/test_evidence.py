"""Published measurements outside every fit: what the model says of them stays within its targets."""

from __future__ import annotations

import statistics

from planning.evidence import HELD_OUT, measurements, products_errors, vertex_errors
from planning.published_rows import read_rows
from planning.validate import fitted_rows


def test_products_are_within_15_percent_on_average_and_none_beyond_35():
    rows = measurements()
    assert len(rows) == 58 and all(row.published >= 0 for row in rows)
    errors = [abs(error) for error in products_errors(rows)]
    assert len(errors) == 37
    assert statistics.mean(errors) <= 0.13 and max(errors) <= 0.35
    few = products_errors(rows, few=True)
    assert len(few) == 15 and statistics.mean(map(abs, few)) <= 0.16


def test_convolution_vertices_are_within_10_percent_in_the_median():
    """Cycles of 113 measured vertices, of which none was fitted."""
    errors = vertex_errors()
    assert len(errors) == 113
    assert statistics.median(map(abs, errors)) < 0.09
    assert abs(statistics.median(errors)) < 0.02


def test_groupberts_run_is_held_out():
    rows, faults = read_rows(HELD_OUT)
    assert not faults
    assert [(row.target, row.step_s) for row in rows] == [("pod16", 11.266), ("bow-pod16", 11.266)]
    assert not {row.id for row in rows} & set(fitted_rows())
