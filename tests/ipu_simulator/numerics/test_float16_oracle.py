"""Our float16 roundings beside an independent implementation of number formats, gfloat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ipu_simulator.numerics.rounding import round_to_nearest_, stochastic, to_nearest

gfloat = pytest.importorskip("gfloat")
formats = pytest.importorskip("gfloat.formats")

COUNT = 20_000


def numbers() -> np.ndarray:
    """float32: float16's numbers, their neighbours and midpoints, and numbers of every magnitude."""
    chance = np.random.default_rng(7)
    halves = chance.integers(0, 0x7C00, COUNT).astype(np.uint16).view(np.float16).astype(np.float32)
    after = np.nextafter(halves.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    after = np.where(np.isfinite(after), after, np.float32(65520))
    middles = (halves + after) / 2
    near = np.concatenate([np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e30))])
    wide = np.exp2(chance.uniform(-30, 20, COUNT)).astype(np.float32)
    every = np.concatenate([halves, middles, near, wide, np.float32([0.0, 65504.0, 65519.9, 65520.0, 1e30])])
    return np.concatenate([every, -every])


def oracle(values: np.ndarray, mode: object) -> np.ndarray:
    rounded = gfloat.round_ndarray(formats.format_info_binary16, values.astype(np.float64), mode, sat=True)
    return np.asarray(rounded, dtype=np.float64)


def test_rounding_to_nearest_is_gfloats() -> None:
    values = numbers()
    expected = oracle(values, gfloat.RoundMode.TiesToEven)
    ours = to_nearest(torch.from_numpy(values.copy())).double().numpy()
    assert np.array_equal(ours, expected) and np.array_equal(np.signbit(ours), np.signbit(expected))
    assert np.array_equal(round_to_nearest_(torch.from_numpy(values.copy())).double().numpy(), expected)


def test_stochastic_rounding_is_between_gfloats_two_directions() -> None:
    values = numbers()
    below = oracle(values, gfloat.RoundMode.TowardNegative)
    above = oracle(values, gfloat.RoundMode.TowardPositive)
    words = torch.from_numpy(np.random.default_rng(1).integers(-(2**31), 2**31, len(values), dtype=np.int32))
    ours = stochastic(torch.from_numpy(values.copy()), words).double().numpy()
    assert np.all((ours == below) | (ours == above))
    inexact = below != above
    assert 0.3 < np.mean(ours[inexact] == above[inexact]) < 0.7  # both directions occur
    assert np.array_equal(ours[~inexact], below[~inexact])
