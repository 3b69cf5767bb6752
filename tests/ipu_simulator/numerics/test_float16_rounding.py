"""float16 by definition: all 65,536 values, the numbers around each, and the midpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ipu_simulator.numerics.rounding import (
    FLOAT16,
    FLOAT32,
    NumberFormat,
    overflows,
    round_to_nearest_,
    to_nearest,
)

ALL_BITS = np.arange(1 << 16, dtype=np.uint32)


def values_by_definition(bits: np.ndarray) -> np.ndarray:
    """IEEE 754 binary16: (-1)^s * f * 2^(e - 25), f with the hidden bit where e > 0; float64."""
    sign = np.where(bits >> 15, -1.0, 1.0)
    exponent, fraction = (bits >> 10) & 31, bits & 1023
    significand = np.where(exponent > 0, fraction + 1024, fraction).astype(np.float64)
    value = significand * 2.0 ** (np.maximum(exponent, 1) - 25.0)
    value = np.where((exponent == 31) & (fraction == 0), np.inf, value)
    return sign * np.where((exponent == 31) & (fraction > 0), np.nan, value)


FINITE = ALL_BITS[((ALL_BITS >> 10) & 31) < 31]
MAGNITUDES = values_by_definition(np.arange(0x7C00, dtype=np.uint32))  # increasing with the bits


def nearest_by_definition(values: np.ndarray) -> np.ndarray:
    """uint16 bits of the nearest float16 in this format's finite range, ties to the even fraction."""
    magnitude = np.abs(values.astype(np.float64))
    above = np.minimum(np.searchsorted(MAGNITUDES, magnitude), 0x7BFF)
    below = np.where(MAGNITUDES[above] <= magnitude, above, np.maximum(above - 1, 0))
    to_below, to_above = magnitude - MAGNITUDES[below], MAGNITUDES[above] - magnitude
    odd = below % 2 == 1
    take_above = (to_above < to_below) | ((to_above == to_below) & odd)
    bits = np.where(take_above, above, below)
    return (bits | np.where(np.signbit(values), 0x8000, 0)).astype(np.uint16)


def rounded_bits(values: np.ndarray) -> np.ndarray:
    return to_nearest(torch.from_numpy(values.astype(np.float32))).view(torch.int16).numpy().view(np.uint16)


def test_the_format_follows_from_its_bits():
    assert NumberFormat(5, 10) == FLOAT16
    assert (FLOAT16.bits, FLOAT16.bias, FLOAT32.bits, FLOAT32.bias) == (16, 15, 32, 127)
    for ours, dtype in ((FLOAT16, torch.float16), (FLOAT32, torch.float32)):
        theirs = torch.finfo(dtype)
        assert ours.largest == theirs.max
        assert ours.smallest_normal == theirs.smallest_normal
        assert ours.epsilon == theirs.eps
    assert MAGNITUDES[1] == FLOAT16.smallest_subnormal
    assert MAGNITUDES[-1] == FLOAT16.largest


def test_the_definition_is_numpys():
    values = ALL_BITS.astype(np.uint16).view(np.float16).astype(np.float64)
    np.testing.assert_array_equal(values, values_by_definition(ALL_BITS))


def points_around_every_half() -> dict[str, np.ndarray]:
    """float32: each finite float16, the midpoint to the next one away from 0, and an ulp on either side."""
    values = values_by_definition(FINITE)
    next_magnitude = np.append(MAGNITUDES, 65536.0)[(FINITE & 0x7FFF) + 1]
    midpoints = np.copysign((np.abs(values) + next_magnitude) / 2, values)
    points = {"value": values.astype(np.float32), "midpoint": midpoints.astype(np.float32)}
    assert all(
        np.array_equal(points[name].astype(np.float64), exact)
        for name, exact in (("value", values), ("midpoint", midpoints))
    )
    for name in ("value", "midpoint"):
        for side, towards in (("up", np.inf), ("down", -np.inf)):
            points[f"{name} {side}"] = np.nextafter(points[name], np.float32(towards))
    return points


@pytest.mark.parametrize("name", points_around_every_half())
def test_every_half_is_rounded_to_nearest_even(name):
    points = points_around_every_half()[name]
    assert len(points) == 2 * 0x7C00
    expected = nearest_by_definition(points)
    np.testing.assert_array_equal(rounded_bits(points), expected)
    # A second oracle; it differs where a number is too large, and there only.
    with np.errstate(over="ignore"):
        theirs = points.astype(np.float16)
    assert np.isinf(theirs).sum() == {"midpoint": 2, "midpoint up": 1, "midpoint down": 1}.get(name, 0)
    np.testing.assert_array_equal(theirs.view(np.uint16)[np.isfinite(theirs)], expected[np.isfinite(theirs)])
    in_place = torch.from_numpy(points.copy())
    round_to_nearest_(in_place)
    np.testing.assert_array_equal(in_place.half().view(torch.int16).numpy().view(np.uint16), expected)


@pytest.mark.parametrize("value", [65519.996, 65520.0, 65536.0, 1e30, float("inf")])
def test_what_is_too_large_becomes_the_largest(value):
    assert to_nearest(torch.tensor([value, -value])).tolist() == [65504.0, -65504.0]
    assert overflows(torch.tensor([1.0, -value])) == (value >= 65520.0)
    assert FLOAT16.overflow_from == 65520.0


def test_nan_stays():
    bits = ALL_BITS[((ALL_BITS >> 10) & 31) == 31]
    values = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    rounded = to_nearest(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(values))
    assert rounded[~np.isnan(values)].tolist() == [65504.0, -65504.0]
