"""Keyed randomness: 64-bit random numbers that are a pure function of a key, vectorised over numpy.

Number n of a key is `mix(key + n * GOLDEN)`: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014) used as a counter-based generator. It has no state, so the n-th number of an
example is the same in any batch, worker or resumed run. A batch costs a few array operations; a numpy
Generator per example would cost more than everything else that is done with it.
"""

from __future__ import annotations

import functools
from typing import Union

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK64 = (1 << 64) - 1
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_TOP = np.uint64(32)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)

Integers = Union[int, np.ndarray]


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64: every output bit depends on every input bit.

    It is called for every batch with arrays that fit a CPU's first cache, so it makes few new ones.
    """
    mixed = x >> _SHIFTS[0]
    mixed ^= x
    mixed *= _FACTORS[0]
    mixed ^= mixed >> _SHIFTS[1]
    mixed *= _FACTORS[1]
    mixed ^= mixed >> _SHIFTS[2]
    return mixed


def derive_key(*parts: Integers) -> np.ndarray:
    """A uint64 key for a tuple of integers, such as (seed, epoch, index); arrays broadcast."""
    key: np.ndarray = np.zeros((), dtype=np.uint64)
    for part in parts:
        words = np.uint64(part & _MASK64) if isinstance(part, int) else part.astype(np.uint64)
        with np.errstate(over="ignore"):
            key = mix((key ^ words) + _GOLDEN)
    return key


def draws(keys: np.ndarray, count: int) -> np.ndarray:
    """uint64 [B, count]: the first `count` random numbers of each key (uint64 [B])."""
    return mix(keys[:, None] + counters(count))


@functools.lru_cache(maxsize=64)
def counters(count: int) -> np.ndarray:
    """uint64 [count]: `mix` of their sums with a key are its first random numbers. Not to be changed."""
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


def below(words: np.ndarray, bound: int) -> np.ndarray:
    """int64 in [0, bound) from uint64 random numbers: bound * top 32 bits / 2^32, for bound < 2^31."""
    assert 0 < bound < 1 << 31
    scaled = words >> _TOP
    scaled *= np.uint64(bound)
    scaled >>= _TOP
    return scaled.view(np.int64)


def share(probability: float) -> np.uint64:
    """The bound below which a random uint64 is with this probability in [0.5, 1)."""
    assert 0.5 <= probability < 1
    return np.uint64(int(probability * 2**53) << 11)


def unit_interval(words: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from uint64 random numbers (their top 53 bits)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


_ROUNDS = 8  # each round mixes one half with a function of the other


class IndexPermutation:
    """A keyed bijection of range(n) in constant memory: shuffles a dataset without storing the order.

    A Feistel network permutes the 2^bits numbers of the smallest power of two >= n; a result >= n is permuted
    again until it is below n (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002). Since 2^bits < 2n, that takes fewer than two rounds on average.
    """

    def __init__(self, n: int, key: int) -> None:
        if n < 1:
            raise ValueError(f"a permutation needs at least one index, not {n}")
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._right_bits = np.uint64(bits // 2)
        self._right_mask = np.uint64((1 << (bits // 2)) - 1)
        self._left_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._round_keys = [derive_key(key, round_index) for round_index in range(_ROUNDS)]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """int64 images of int64 indices (any shape). Indices outside range(n) raise IndexError."""
        indices = np.asarray(indices)
        flat = indices.reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.n):
            raise IndexError(f"an index is outside range({self.n})")
        images = self._permute(flat.astype(np.uint64))
        outside = np.flatnonzero(images >= self.n)
        while outside.size:
            images[outside] = self._permute(images[outside])
            outside = outside[images[outside] >= self.n]
        return images.astype(np.int64).reshape(indices.shape)

    def _permute(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._right_bits, x & self._right_mask
        for i, key in enumerate(self._round_keys):
            if i % 2 == 0:
                left = left ^ (mix(right + key) & self._left_mask)
            else:
                right = right ^ (mix(left + key) & self._right_mask)
        return (left << self._right_bits) | right
