"""Number formats: binary floating point, a device's dtypes, and facts of its arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


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
