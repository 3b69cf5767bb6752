"""Means with confidence intervals of few samples, and quartiles."""

from __future__ import annotations

import math
import statistics
from typing import Sequence, Tuple

# Student's t, two-sided 95%, by degrees of freedom from 1 (any table of the distribution).
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
_T_95_MANY = 1.960


def mean_and_half_width(samples: Sequence[float]) -> Tuple[float, float]:
    """The mean and half of its 95% confidence interval (Student's t); NaN for the latter of one sample.

    Assumes independent samples of a normal distribution. Raises ValueError for no sample.
    """
    if not samples:
        raise ValueError("no samples: their mean isn't defined")
    mean = statistics.fmean(samples)
    freedom = len(samples) - 1
    if freedom == 0:
        return mean, math.nan
    t = _T_95[freedom - 1] if freedom <= len(_T_95) else _T_95_MANY
    return mean, t * statistics.stdev(samples) / math.sqrt(len(samples))


def quartiles(samples: Sequence[float]) -> Tuple[float, float, float]:
    """First quartile, median and third quartile, interpolated between samples; of one sample, itself."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples: their quartiles aren't defined")
    return _at(ordered, 0.25), _at(ordered, 0.5), _at(ordered, 0.75)


def _at(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
