"""From float32 to float16: to nearest, or up and down by chance so that the mean is the exact value.

What an IPU does with a number that is too large is a fact of the hardware's control register: it stores the
largest number instead (`facts.json`, "overflow"), unless the program asked for floating-point exceptions,
which stop it.
"""

from __future__ import annotations

import torch

from .formats import FLOAT16, FLOAT32, fact
from .randomness import KeyedRandomness, random_words

assert fact("overflow") == "largest", "to_nearest and stochastic are written for that"

# float32 bits that float16 doesn't have.
_DROPPED_BITS = FLOAT32.mantissa_bits - FLOAT16.mantissa_bits
_DROPPED = (1 << _DROPPED_BITS) - 1
# A float32 in [0, 1) has this many bits that are equally likely.
_CHANCE_BITS = FLOAT32.mantissa_bits + 1


class FloatingPointException(ArithmeticError):
    """A result that stops a program whose floating-point exceptions are on."""


def to_nearest(values: torch.Tensor) -> torch.Tensor:
    """float32 -> float16, to nearest, ties to even; too large a magnitude becomes the largest one.

    Infinities do too, NaN stays NaN.
    """
    return values.clamp(-FLOAT16.largest, FLOAT16.largest).half()


def round_to_nearest_(values: torch.Tensor) -> torch.Tensor:
    """As to_nearest, but leaves the rounded numbers in place, as float32."""
    return values.clamp_(-FLOAT16.largest, FLOAT16.largest).copy_(values.half())


def stochastic(values: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """float32 -> float16: one of the two neighbours, the nearer one with the greater probability.

    `words` (int32, the shape of `values`) are uniform over all 2^32 bit patterns. P(up) is the distance from
    the lower neighbour over that between both: exactly so for normal numbers, to 2^-24 for subnormal ones.
    A float16 stays as it is; beyond the largest number as in to_nearest.
    """
    # Adding chance to the bits that will be dropped carries into the kept ones just as often as is wanted.
    kept = (values.view(torch.int32) + (words & _DROPPED)) & ~_DROPPED
    rounded = kept.view(torch.float32)
    small = values.abs() < FLOAT16.smallest_normal
    if bool(small.any()):
        rounded[small] = _stochastic_subnormal(values[small], words[small])
    # A NaN's bits are no magnitude to add to.
    rounded = torch.where(values.isnan(), values, rounded)
    return to_nearest(rounded)


def _stochastic_subnormal(values: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    # Both steps are exact: a power of two, and a fraction of no more bits than float32 has.
    quanta = values.abs() / FLOAT16.smallest_subnormal
    lower = quanta.floor()
    chance = ((words >> (FLOAT32.bits - _CHANCE_BITS)) & ((1 << _CHANCE_BITS) - 1)).float()
    quanta = lower + (chance * 2.0**-_CHANCE_BITS < quanta - lower).float()
    return torch.copysign(quanta * FLOAT16.smallest_subnormal, values)


def overflows(values: torch.Tensor) -> bool:
    """Whether a float32 tensor holds a magnitude that float16 doesn't have."""
    return bool((values.abs() >= FLOAT16.overflow_from).any())


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
