import math

import numpy as np
import pytest

from benchmarks.results import mean_and_half_width, quartiles


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
