"""Keyed draws and permutations depend on the key alone, and pass statistical tests."""

from __future__ import annotations

import numpy as np
import pytest

from data.randomness import IndexPermutation, below, derive_key, draws, unit_interval


def splitmix64(state: int) -> int:
    """One output of the published generator, with Python integers."""
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


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 4096, 4097, 100_003])
def test_is_a_bijection(n: int) -> None:
    images = IndexPermutation(n, key=n)(np.arange(n))
    assert sorted(images.tolist()) == list(range(n))


def test_access_in_any_grouping_gives_the_same() -> None:
    permutation = IndexPermutation(1001, key=7)
    whole = permutation(np.arange(1001))
    assert [int(permutation(np.array([i]))[0]) for i in (0, 500, 1000)] == whole[[0, 500, 1000]].tolist()
    assert permutation(np.arange(1000).reshape(10, 100)).tolist() == whole[:1000].reshape(10, 100).tolist()


def test_keys_give_unrelated_orders() -> None:
    n = 10_000
    orders = [IndexPermutation(n, key)(np.arange(n)) for key in range(5)]
    for i, order in enumerate(orders):
        for other in (*orders[:i], np.arange(n)):
            # Two random permutations agree in one place on average, with a standard deviation of one.
            assert (order == other).sum() <= 8
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.05


def test_every_index_goes_everywhere() -> None:
    """Chi-squared test: over many keys, the image of each index of a small range is uniform."""
    n, keys = 12, 6000
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), IndexPermutation(n, key)(np.arange(n))] += 1
    expected = keys / n
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    degrees = (n - 1) ** 2
    assert abs(chi_squared - degrees) < 5 * np.sqrt(2 * degrees)


def test_neighbours_part() -> None:
    n = 1 << 16
    steps = np.abs(np.diff(IndexPermutation(n, key=3)(np.arange(n))))
    # Two uniform numbers below n differ by n/3 on average.
    assert abs(steps.mean() / n - 1 / 3) < 0.01


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        IndexPermutation(10, key=0)(np.array([10]))
    with pytest.raises(IndexError):
        IndexPermutation(10, key=0)(np.array([-1]))


def test_huge_ranges_cost_no_memory() -> None:
    n = 10**15
    images = IndexPermutation(n, key=1)(np.arange(n - 1000, n))
    assert len(set(images.tolist())) == 1000
    assert images.min() >= 0 and images.max() < n
