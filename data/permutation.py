"""A keyed bijection of range(n) in constant memory, for shuffling a data set without storing the order."""

from __future__ import annotations

import numpy as np

from data.randomness import derive_key, mix

_ROUNDS = 8  # each round mixes one half with a function of the other


class IndexPermutation:
    """Maps indices of range(n) one to one onto range(n).

    A Feistel network permutes the 2^bits numbers of the smallest power of two that holds n; a result that is
    not below n is sent through again until it is (cycle walking: Black and Rogaway, "Ciphers with arbitrary
    finite domains", CT-RSA 2002). As 2^bits < 2n, that takes fewer than two rounds on average.
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
