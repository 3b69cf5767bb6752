"""Cycles of one tile's share of a matrix product: the AMP unit, and the reduction of partial sums.

Formulas follow poplibs' own estimators: poplin/PerformanceEstimation.hpp (getConvPartial1x1Supervisor...,
getConvPartialnx1...) and getReduceCycleEstimate. The tile's six workers take turns, so a worker's cycle is
six of the tile's. All functions take numpy arrays as well as numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

WORKERS = 6
# What goes through the AMP together: channels of input of one block.
BLOCK = 16
# Bytes of weights that a tile loads into its AMP in a cycle: one 64-bit load, as 128-bit loads are off by
# default.
_WEIGHT_LOAD_BYTES = 8


@dataclass(frozen=True)
class Unit:
    """How the AMP works on a type.

    :param block_out: output channels of a block.
    :param loop_cycles: a worker's cycles for one position through one block.
    """

    block_out: int
    loop_cycles: int
    input_bytes: int
    partial_bytes: int

    @property
    def weight_load_cycles(self) -> float:
        return self.block_out * BLOCK * self.input_bytes / _WEIGHT_LOAD_BYTES

    @property
    def macs_per_cycle(self) -> float:
        """Of one tile, at best."""
        return self.block_out * BLOCK / self.loop_cycles


HALF = Unit(16, 4, 2, 2)
HALF_FLOAT_PARTIALS = Unit(8, 4, 2, 4)
FLOAT = Unit(8, 8, 4, 4)


def ceil_div(total: Any, parts: Any) -> Any:
    """The size of the largest of `parts` even parts of integers."""
    return -(-total // parts)


def unit_of(input_bytes: int, half_partials: bool) -> Unit:
    """The AMP's way with elements of 2 or 4 bytes."""
    if input_bytes >= 4:
        return FLOAT
    return HALF if half_partials else HALF_FLOAT_PARTIALS


def product_cycles(unit: Unit, groups: Any, rows: Any, in_blocks: Any, out_blocks: Any) -> Any:
    """[rows, 16 in_blocks] x [16 in_blocks, block_out out_blocks], `groups` times, on one tile.

    The first block of inputs zeroes the partial sums, which costs a worker one cycle less.
    """
    inner = WORKERS * _positions_cycles(unit, rows)
    load = 25 + unit.weight_load_cycles
    accumulating = (in_blocks - 1) * (15 + out_blocks * (load + inner))
    zeroing = 11 + out_blocks * (load + inner - WORKERS)
    return 50 + WORKERS * (7 + 3 * (in_blocks * groups - 1)) + groups * (13 + accumulating + zeroing)


def _positions_cycles(unit: Unit, rows: Any) -> Any:
    """A worker's cycles for its positions of one block, without zeroing."""
    positions = ceil_div(np.asarray(rows), WORKERS)
    many = 31 + unit.loop_cycles * (positions - 3)
    return np.where(positions >= 3, many, np.where(positions == 2, 35, 26))


def kernel_cycles(
    unit: Unit,
    groups: Any,
    positions: Any,
    row_length: int,
    in_channels: int,
    out_channels: Any,
    kernel: tuple[int, int],
) -> Any:
    """A convolution by the nx1 vertex: `positions` outputs, in rows, position by position of the kernel.

    With few input channels, the AMP takes several rows of the kernel at once.
    """
    height, loading = (1, 0) if in_channels > 8 else (2, 46) if in_channels > 4 else (4, 60)
    steps = ceil_div(kernel[0], height) * kernel[1]
    blocks = ceil_div(in_channels, BLOCK) * ceil_div(out_channels, unit.block_out)
    own = ceil_div(np.asarray(positions), WORKERS)
    pieces = np.maximum(1, own / row_length)
    worker = 18 + pieces * (3 + 34 - 9 - 3 * unit.loop_cycles) + unit.loop_cycles * np.maximum(own, 3)
    step = 12 + 18 + loading + unit.weight_load_cycles + WORKERS * worker
    return 109 + groups * blocks * (14 + steps * step)


def slic_cycles(
    groups: Any,
    positions: Any,
    row_length: int,
    in_channels: int,
    out_channels: Any,
    kernel: tuple[int, int],
) -> Any:
    """A convolution of float16 by the SLIC vertex: 4 channels with 4, 4 positions of a kernel row at once.

    Two of its four chains work, so it goes over the field twice (at most 32 multiply-adds a cycle).
    """
    passes = 2
    blocks = ceil_div(in_channels, 4) * ceil_div(out_channels, 4) * kernel[0] * ceil_div(kernel[1], 4)
    own = ceil_div(np.asarray(positions), WORKERS)
    pieces = np.maximum(1, own / row_length)
    worker = 10 + pieces * (15 - 5 * passes) + passes * np.maximum(own, 5)
    return 109 + groups * blocks * (16 + 18 + WORKERS * worker)


def reduction_cycles(unit: Unit, elements: Any, partials: Any) -> Any:
    """Sums `partials` partial sums of `elements` results on this tile (one of them in place)."""
    vector = 16 // unit.partial_bytes
    vectors = np.ceil(np.asarray(elements) / (vector * WORKERS))
    return np.where(np.asarray(partials) > 1, 33 + WORKERS * (20 + vectors * (2 * (partials - 1) + 9)), 0.0)
