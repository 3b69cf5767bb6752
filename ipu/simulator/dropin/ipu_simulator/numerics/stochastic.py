"""Random bits for stochastic rounding, and the rounding of what training keeps.

Every draw is a function of what it belongs to: seed, weight update, replica, accumulation step, tensor and
element. No draw depends on another, on an order or on a number of threads, so a resumed run, and replicas in
other processes, round as one run in one process does.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch

from .randomness import KeyedRandomness
from .rounding import FloatingPointException, overflows, stochastic, to_nearest

# In place of a replica's number: the update of weights that all replicas hold alike.
ALL_REPLICAS = -1


class StateRounding:
    """How accumulators, moments and weights are rounded when they are stored in float16.

    `by_chance`: stochastic rounding is on. `stops`: an overflow is a FloatingPointException.
    """

    def __init__(self, randomness: KeyedRandomness, by_chance: bool, stops: bool) -> None:
        self._randomness = randomness
        self._by_chance = by_chance
        self._stops = stops

    def store(
        self,
        values: torch.Tensor,
        dtype: torch.dtype,
        tensor: str,
        replica: int = ALL_REPLICAS,
        step: int = 0,
    ) -> torch.Tensor:
        """float32 `values` in `dtype`: rounded where that is float16, else themselves.

        `tensor` names what is stored, for example "Accl1___encoder.weight"; it may be stored once in a step.
        `replica` counts those of this process.
        """
        if dtype is not torch.float16:
            return values.to(dtype)
        if self._stops and overflows(values):
            raise FloatingPointException(f"floating point overflow: {tensor} is too large for float16")
        if not self._by_chance:
            return to_nearest(values)
        values = values.contiguous()
        return stochastic(values, self._words(values, tensor, replica, step))

    def _words(self, values: torch.Tensor, tensor: str, replica: int, step: int) -> torch.Tensor:
        if replica != ALL_REPLICAS:
            replica = self._randomness.global_replica(replica)
        seed, iterations_done = self._randomness.state
        return random_words(values.shape, seed, iterations_done, replica, step, tensor)


def random_words(
    shape: torch.Size, seed: int, update: int, replica: int, step: int, tensor: str
) -> torch.Tensor:
    """int32 tensor of uniform bits; the i-th element's are the i-th 32 bits of the key's Philox stream."""
    key = struct.pack("<QQqQ", seed, update, replica, step) + tensor.encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    generator = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    count = shape.numel()
    words = generator.random_raw(-(-count // 2)).view(np.int32)[:count]
    return torch.from_numpy(words).view(shape)
