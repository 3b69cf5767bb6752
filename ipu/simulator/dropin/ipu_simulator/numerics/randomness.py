"""Random draws keyed by what they belong to: seed, update, replica, micro batch, tensor, element.

The device's generator is PyTorch's default CPU generator, seeded afresh for every micro batch and given
back to the host as it was. So the host's stream never moves, no draw depends on how many draws came before,
and two integers (seed, updates done) resume a run exactly.

Stochastic rounding has separate draws, one for each element. None depends on another, on an order or on a
number of threads, so a resumed run, and replicas in other processes, round as one run in one process does.
"""

from __future__ import annotations

import hashlib
import struct
from contextlib import contextmanager
from typing import Iterator, List, Sequence

import torch

from ..installation import needed_for

_MASK = (1 << 64) - 1


class KeyedRandomness:
    """The device's random state: a seed and the number of device iterations done.

    `first_replica`: the number of this process's first replica among those of all processes.
    """

    def __init__(self, seed: int, first_replica: int = 0) -> None:
        self.seed = seed & _MASK
        self.iterations_done = 0
        self._first_replica = first_replica

    @property
    def state(self) -> List[int]:
        """[seed, device iterations done]: all that a resumed run needs."""
        return [self.seed, self.iterations_done]

    @state.setter
    def state(self, state: Sequence[int]) -> None:
        seed, iterations_done = state
        self.seed, self.iterations_done = int(seed) & _MASK, int(iterations_done)

    def global_replica(self, replica: int) -> int:
        """A replica of this process as numbered among those of all processes."""
        return self._first_replica + replica

    def seed_micro_batch(self, replica: int, micro_batch: int) -> None:
        """Start the stream of one micro batch of the current device iteration."""
        replica = self.global_replica(replica)
        key = struct.pack("<QQQQ", self.seed, self.iterations_done, replica, micro_batch)
        digest = hashlib.blake2b(key, digest_size=8).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def host_generator_kept() -> Iterator[None]:
    """Put the host's default CPU generator back as it was."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def random_words(
    shape: torch.Size, seed: int, update: int, replica: int, step: int, tensor: str
) -> torch.Tensor:
    """int32 tensor of uniform bits; the i-th element's are the i-th 32 bits of the key's Philox stream."""
    with needed_for("stochastic rounding"):
        import numpy as np
    key = struct.pack("<QQqQ", seed, update, replica, step) + tensor.encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    generator = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    count = shape.numel()
    words = generator.random_raw(-(-count // 2)).view(np.int32)[:count]
    return torch.from_numpy(words).view(shape)
