"""The unigram entropy, against distributions whose entropy is known."""

from __future__ import annotations

import math
from typing import List

import numpy as np
import pytest

from data.batches import SampleDataset
from data.dataset import unigram_entropy
from data.files import DataError


class Counted(SampleDataset):
    def __init__(self, counts: List[int]) -> None:
        super().__init__(1, seed=0, shuffle=False)
        self._counts = np.array(counts)

    def token_counts(self) -> np.ndarray:
        return self._counts


@pytest.mark.parametrize(
    "counts, entropy",
    [
        ([5], 0.0),
        ([3, 3], math.log(2)),
        ([1] * 100, math.log(100)),
        ([0, 2, 0, 1, 1], 1.5 * math.log(2)),
    ],
)
def test_known_entropies(counts: List[int], entropy: float) -> None:
    assert unigram_entropy(Counted(counts)) == pytest.approx(entropy, abs=1e-12)


def test_nothing_has_no_entropy() -> None:
    with pytest.raises(DataError):
        unigram_entropy(Counted([0, 0]))
