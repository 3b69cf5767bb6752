"""The proof of an overflow, compared with every set of buffers."""

from __future__ import annotations

import itertools
import random

import pytest
from ipu_simulator.cost.memory import overflow
from ipu_simulator.cost.verdict import Buffer


@pytest.mark.parametrize("seed", range(5))
def test_no_smaller_set_proves_it(seed):
    generator = random.Random(seed)
    buffers = [Buffer(f"b{i}", "temporary", "", generator.randrange(1, 100)) for i in range(10)]
    usable = generator.randrange(sum(buffer.bytes for buffer in buffers))
    proof = overflow(3, "backward", buffers, usable)
    sizes = [buffer.bytes for buffer in proof.buffers]
    assert proof.ipu == 3 and proof.moment == "backward"
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) > usable
    assert proof.over_bytes == sum(buffer.bytes for buffer in buffers) - usable
    for few in itertools.combinations(buffers, len(sizes) - 1):
        assert sum(buffer.bytes for buffer in few) <= usable
