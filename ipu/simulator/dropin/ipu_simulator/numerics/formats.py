"""Binary floating-point formats, and what follows from their two numbers of bits."""

from __future__ import annotations

from dataclasses import dataclass


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
