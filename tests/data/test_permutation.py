"""The shuffled order is a bijection, keyed, and has no visible structure."""

from __future__ import annotations

import numpy as np
import pytest

from data.randomness import IndexPermutation


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
    """Over many keys the image of each index of a small range is uniform: a chi-squared test."""
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
