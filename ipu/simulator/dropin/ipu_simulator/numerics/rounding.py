"""From float32 to float16: to nearest, or up and down by chance so that the mean is the exact value.

What an IPU does with a number that is too large is a fact of the hardware's control register: it stores the
largest number instead (`facts.json`, "overflow"), unless the program asked for floating-point exceptions,
which stop it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Sequence

import torch

from ..host import needed_for

# Number formats: binary floating point, a device's dtypes, and facts of its arithmetic.


@dataclass(frozen=True)
class NumberFormat:
    """A sign, `exponent_bits` biased exponent and `mantissa_bits` fraction, as in IEEE 754: with subnormal
    numbers, and the largest exponent kept for infinities and NaN.
    """

    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """Also the distance between subnormal numbers."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number."""
        return 2.0**-self.mantissa_bits

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return 2.0**self.bias * (2 - self.epsilon)

    @property
    def overflow_from(self) -> float:
        """The smallest magnitude that rounding to nearest, ties to even, takes beyond `largest`."""
        return 2.0**self.bias * (2 - self.epsilon / 2)


FLOAT16 = NumberFormat(exponent_bits=5, mantissa_bits=10)
FLOAT32 = NumberFormat(exponent_bits=8, mantissa_bits=23)


# Which dtypes the device has: no 64-bit types and no bfloat16.

_FLOATS = {torch.float64: torch.float32, torch.bfloat16: torch.float32}
_INTEGERS = {torch.int64: torch.int32}


def device_dtype(dtype: torch.dtype, integers: bool = False) -> torch.dtype:
    """The dtype that stands for `dtype`; 64-bit integers narrow only if `integers`.

    Inside a step 64-bit integers stay as they are, because PyTorch's CPU kernels index with them;
    they narrow where they come back to the host.
    """
    dtype = _FLOATS.get(dtype, dtype)
    return _INTEGERS.get(dtype, dtype) if integers else dtype


def to_device_dtype(tensor: torch.Tensor, integers: bool = False, copy: bool = False) -> torch.Tensor:
    """`tensor` in its device dtype: itself where that is the same and no copy is asked for."""
    return tensor.to(device_dtype(tensor.dtype, integers), copy=copy)


def fact(name: str) -> Any:
    """The value of one fact of an IPU's arithmetic: `facts.json`, with sources and confidence."""
    text = Path(__file__).with_name("facts.json").read_text(encoding="utf-8")
    return json.loads(text)[name]["value"]


# Random draws keyed by what they belong to: seed, update, replica, micro batch, tensor, element.
#
# The device's generator is PyTorch's default CPU generator, seeded afresh for every micro batch and given
# back to the host as it was. So the host's stream never moves, no draw depends on how many draws came before,
# and two integers (seed, updates done) resume a run exactly.
#
# Stochastic rounding has separate draws, one for each element. None depends on another, on an order or on a
# number of threads, so a resumed run, and replicas in other processes, round as one run in one process does.

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
