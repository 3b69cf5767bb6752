"""Number formats, keyed random draws, and rounding from float32 to float16: to nearest or stochastic.

On overflow an IPU stores the largest number (`facts.json`, "overflow"), unless the program has turned on
floating-point exceptions, which raise.

The device's generator is PyTorch's default CPU generator, reseeded for every micro batch; afterwards the
host's state is restored. So the host's stream is unaffected, no draw depends on the number of earlier draws,
and two integers (seed, updates done) resume a run exactly. Stochastic rounding has separate draws, one per
element, keyed by seed, update, replica, tensor and element: a resumed run, and replicas in other processes,
round as one uninterrupted process does, in any order and with any number of threads.
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

# Number formats and the device's dtypes.


@dataclass(frozen=True)
class NumberFormat:
    """A sign, `exponent_bits` biased exponent and `mantissa_bits` fraction, as in IEEE 754: with subnormal
    numbers, and the largest exponent reserved for infinities and NaN.
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
        """The smallest positive number, and the spacing of subnormal numbers."""
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
        """The smallest magnitude that overflows when rounded to nearest, ties to even."""
        return 2.0**self.bias * (2 - self.epsilon / 2)


FLOAT16 = NumberFormat(exponent_bits=5, mantissa_bits=10)
FLOAT32 = NumberFormat(exponent_bits=8, mantissa_bits=23)


# The device has no 64-bit types and no bfloat16.

_FLOATS = {torch.float64: torch.float32, torch.bfloat16: torch.float32}
_INTEGERS = {torch.int64: torch.int32}


def device_dtype(dtype: torch.dtype, integers: bool = False) -> torch.dtype:
    """The device's dtype for `dtype`; 64-bit integers narrow only if `integers`.

    Within a step 64-bit integers are kept, because PyTorch's CPU kernels use them as indices; they narrow
    when they are returned to the host.
    """
    dtype = _FLOATS.get(dtype, dtype)
    return _INTEGERS.get(dtype, dtype) if integers else dtype


def to_device_dtype(tensor: torch.Tensor, integers: bool = False, copy: bool = False) -> torch.Tensor:
    """`tensor` in its device dtype: the same object if the dtype matches and `copy` is False."""
    return tensor.to(device_dtype(tensor.dtype, integers), copy=copy)


def fact(name: str) -> Any:
    """The value of a fact of an IPU's arithmetic in `facts.json`, which has sources and confidence."""
    text = Path(__file__).with_name("facts.json").read_text(encoding="utf-8")
    return json.loads(text)[name]["value"]


# Random draws.

_MASK = (1 << 64) - 1


class KeyedRandomness:
    """The device's random state: a seed and the number of device iterations done.

    `first_replica`: the global number of this process's first replica.
    """

    def __init__(self, seed: int, first_replica: int = 0) -> None:
        self.seed = seed & _MASK
        self.iterations_done = 0
        self._first_replica = first_replica

    @property
    def state(self) -> List[int]:
        """[seed, device iterations done]: all that is needed to resume."""
        return [self.seed, self.iterations_done]

    @state.setter
    def state(self, state: Sequence[int]) -> None:
        seed, iterations_done = state
        self.seed, self.iterations_done = int(seed) & _MASK, int(iterations_done)

    def global_replica(self, replica: int) -> int:
        """The global number of a replica of this process."""
        return self._first_replica + replica

    def seed_micro_batch(self, replica: int, micro_batch: int) -> None:
        """Seeds the generator for one micro batch of the current device iteration."""
        torch.default_generator.manual_seed(self.micro_batch_seed(replica, micro_batch))

    def micro_batch_seed(self, replica: int, micro_batch: int) -> int:
        """The seed of one micro batch of the current device iteration."""
        replica = self.global_replica(replica)
        key = struct.pack("<QQQQ", self.seed, self.iterations_done, replica, micro_batch)
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


@contextmanager
def host_generator_kept() -> Iterator[None]:
    """Restores the host's default CPU generator on exit."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def random_words(
    shape: torch.Size, seed: int, update: int, replica: int, step: int, tensor: str
) -> torch.Tensor:
    """int32 tensor of uniform bits; element i has bits 32i to 32i + 31 of the key's Philox stream."""
    with needed_for("stochastic rounding"):
        import numpy as np
    key = struct.pack("<QQqQ", seed, update, replica, step) + tensor.encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    generator = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    count = shape.numel()
    words = generator.random_raw(-(-count // 2)).view(np.int32)[:count]
    return torch.from_numpy(words).view(shape)


assert fact("overflow") == "largest", "to_nearest and stochastic are written for that"

# Mantissa bits that float32 has and float16 doesn't.
_DROPPED_BITS = FLOAT32.mantissa_bits - FLOAT16.mantissa_bits
_DROPPED = (1 << _DROPPED_BITS) - 1
# Random bits of a float32 in [0, 1).
_CHANCE_BITS = FLOAT32.mantissa_bits + 1


class FloatingPointException(ArithmeticError):
    """A floating-point exception in a program that has turned them on."""


class InvalidOperation(FloatingPointException):
    """An operation on the device made NaN from operands without it."""


def to_nearest(values: torch.Tensor) -> torch.Tensor:
    """float32 -> float16, to nearest, ties to even; overflow gives the largest number.

    So do infinities; NaN stays NaN.
    """
    return values.clamp(-FLOAT16.largest, FLOAT16.largest).half()


def round_to_nearest_(values: torch.Tensor) -> torch.Tensor:
    """As to_nearest, but in place: float32 with float16 values."""
    return values.clamp_(-FLOAT16.largest, FLOAT16.largest).copy_(values.half())


def stochastic(values: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """float32 -> float16: one of the two neighbours, the nearer one with the greater probability.

    `words` (int32, the shape of `values`) are uniform over all 2^32 bit patterns. P(up) is the distance from
    the lower neighbour over the distance between both: exact for normal numbers, to 2^-24 for subnormal ones.
    Values that float16 represents are unchanged; overflow is as in to_nearest.
    """
    rounded = torch.empty(values.shape, dtype=torch.float16)
    parts = (tensor.reshape(-1).split(_CHUNK) for tensor in (rounded, values, words))
    for into, some, random in zip(*parts):
        into.copy_(_stochastic(some, random))
    return rounded


# Elements whose temporary tensors stay in a core's cache.
_CHUNK = 1 << 17


def _stochastic(values: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    # Adding random bits to those that are dropped carries into the kept bits with the wanted probability.
    kept = (words & _DROPPED).add_(values.view(torch.int32)).bitwise_and_(~_DROPPED)
    rounded = kept.view(torch.float32)
    magnitude = values.abs()
    small = magnitude < FLOAT16.smallest_normal
    if bool(small.any()):
        rounded = torch.where(small, _stochastic_subnormal(magnitude, words).copysign_(values), rounded)
    # The bits of a NaN aren't a magnitude.
    is_nan = values.isnan()
    if bool(is_nan.any()):
        rounded = torch.where(is_nan, values, rounded)
    return to_nearest(rounded)


def _stochastic_subnormal(magnitudes: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """float32 >= 0, which it overwrites. Larger numbers than subnormal ones give no meaningful results."""
    # Both steps are exact: a multiplication by a power of two, and a fraction that fits float32's mantissa.
    fraction = magnitudes.mul_(1 / FLOAT16.smallest_subnormal)
    lower = fraction.floor()
    fraction.sub_(lower)
    chance = ((words >> (FLOAT32.bits - _CHANCE_BITS)) & ((1 << _CHANCE_BITS) - 1)).float()
    return lower.add_(chance.mul_(2.0**-_CHANCE_BITS) < fraction).mul_(FLOAT16.smallest_subnormal)


def overflows(values: torch.Tensor) -> bool:
    """Whether a float32 tensor has a magnitude that overflows float16."""
    return bool((values.abs() >= FLOAT16.overflow_from).any())


# Instead of a replica's number: an update of weights that are the same on all replicas.
ALL_REPLICAS = -1


class StateRounding:
    """How accumulators, moments and weights are rounded when they are stored in float16.

    `by_chance`: stochastic rounding is on. `stops`: an overflow raises FloatingPointException.
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
        """float32 `values` in `dtype`: rounded if that is float16, otherwise unchanged.

        `tensor` is the name of the state, for example "Accl1___encoder.weight"; it may be stored once per
        step. `replica` is this process's number.
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
