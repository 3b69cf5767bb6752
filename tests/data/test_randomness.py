"""Keyed draws: what they are keyed by is all they depend on, and they look random."""

from __future__ import annotations

import numpy as np

from data.randomness import below, derive_key, draws, unit_interval


def splitmix64(state: int) -> int:
    """One output of the published generator, in Python's integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_draws_are_splitmix64() -> None:
    # 0xE220A8397B1DCDAF is the first output for seed 0 in the reference implementation (Vigna, splitmix64.c).
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    key = 0xFFFFFFFFFFFFFF00
    words = draws(np.array([0, key], dtype=np.uint64), 3)
    golden = 0x9E3779B97F4A7C15
    assert words.tolist() == [[splitmix64(start + i * golden) for i in range(3)] for start in (0, key)]


def test_keys_differ_in_every_part_and_their_order() -> None:
    keys = {int(derive_key(*parts)) for parts in ((0,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1), (-1, 0))}
    assert len(keys) == 7


def test_arrays_of_parts_give_the_scalars_keys() -> None:
    epochs, indices = np.array([0, 5, 5]), np.array([7, 7, 8])
    keys = derive_key(42, epochs, indices)
    assert keys.tolist() == [int(derive_key(42, e, i)) for e, i in ((0, 7), (5, 7), (5, 8))]


def test_draws_are_uniform() -> None:
    words = draws(derive_key(1, np.arange(1000)), 100)
    numbers = unit_interval(words)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / numbers.size) ** 0.5
    counts = np.bincount(below(words, 10).ravel(), minlength=10)
    assert len(counts) == 10
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 9 + 5 * 18**0.5
