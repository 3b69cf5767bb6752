"""Cycles of one tile's share of a matrix product: the matrix unit (AMP), and the reduction of partial sums.

Formulas follow poplibs' estimators: poplin/PerformanceEstimation.hpp (getConvPartial1x1Supervisor...,
getConvPartialnx1...) and getReduceCycleEstimate. The tile's worker threads (six on Mk2) are scheduled
round-robin, so one cycle of a worker is as many tile cycles as there are workers. Counts are whole numbers,
or numpy arrays of them for many plans at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union, overload

import numpy as np

from ..environment import Target

# Input channels that enter the AMP together, and its convolution units: output channels of a block. Vertices
# with float32 partial sums use half of the units (poplin, ConvVertexType).
BLOCK = 16
_UNITS = 16

Counts = Union[int, np.ndarray]


@dataclass(frozen=True)
class Unit:
    """The rate of a tile's AMP for elements of one type.

    :param macs_per_cycle: peak multiply-adds per cycle of a tile: a hardware fact.
    :param block_out: output channels of a block.
    :param fact: name of that hardware fact.
    :param workers: worker threads of a tile.
    :param load_bytes_per_cycle: of two loads in parallel.
    """

    macs_per_cycle: int
    block_out: int
    input_bytes: int
    partial_bytes: int
    fact: str
    workers: int
    load_bytes_per_cycle: int

    @property
    def loop_cycles(self) -> float:
        """A worker's cycles for one position of one block."""
        return self.block_out * BLOCK / self.macs_per_cycle

    @property
    def weight_load_cycles(self) -> float:
        """To load a block's weights with one of the two loads: poplibs' 128-bit loads are off by default."""
        return self.block_out * BLOCK * self.input_bytes / (self.load_bytes_per_cycle / 2)


@overload
def ceil_div(total: int, parts: int) -> int: ...


@overload
def ceil_div(total: np.ndarray, parts: Counts) -> np.ndarray: ...


@overload
def ceil_div(total: int, parts: np.ndarray) -> np.ndarray: ...


def ceil_div(total: Counts, parts: Counts) -> Counts:
    """Size of the largest part when an integer `total` is split evenly into `parts`."""
    return -(-total // parts)


def unit_of(target: Target, input_bytes: int, half_partials: bool) -> Unit:
    """The AMP of `target` for elements of 2 or 4 bytes."""
    if input_bytes >= 4:
        rate, block_out, stored, partial, fact = (
            target.float_macs_per_cycle,
            _UNITS // 2,
            4,
            4,
            "float_macs_per_cycle",
        )
    elif half_partials:
        rate, block_out, stored, partial, fact = (
            target.half_macs_per_cycle,
            _UNITS,
            2,
            2,
            "half_macs_per_cycle",
        )
    else:
        rate, block_out, stored, partial, fact = (
            target.half_float_partials_macs_per_cycle,
            _UNITS // 2,
            2,
            4,
            "half_float_partials_macs_per_cycle",
        )
    return Unit(
        rate, block_out, stored, partial, fact, target.worker_threads_per_tile, target.load_bytes_per_cycle
    )


def product_cycles(
    unit: Unit, groups: Counts, rows: Counts, in_blocks: Counts, out_blocks: Counts
) -> np.ndarray:
    """[rows, 16 in_blocks] x [16 in_blocks, block_out out_blocks], `groups` times, on one tile.

    The first block of inputs zeroes the partial sums, which saves a worker one cycle.
    """
    inner = unit.workers * _positions_cycles(unit, rows)
    load = 25 + unit.weight_load_cycles
    accumulating = (in_blocks - 1) * (15 + out_blocks * (load + inner))
    zeroing = 11 + out_blocks * (load + inner - unit.workers)
    return 50 + unit.workers * (7 + 3 * (in_blocks * groups - 1)) + groups * (13 + accumulating + zeroing)


def _positions_cycles(unit: Unit, rows: Counts) -> np.ndarray:
    """A worker's cycles for its positions of one block, without zeroing."""
    positions = ceil_div(np.asarray(rows), unit.workers)
    many = 31 + unit.loop_cycles * (positions - 3)
    return np.where(positions >= 3, many, np.where(positions == 2, 35, 26))


def kernel_cycles(
    unit: Unit,
    groups: Counts,
    positions: Counts,
    row_length: int,
    in_channels: int,
    out_channels: Counts,
    kernel: tuple[int, int],
) -> np.ndarray:
    """A convolution with the nx1 vertex: `positions` outputs in rows, one kernel position at a time.

    With few input channels, the AMP processes several rows of the kernel at once.
    """
    height, loading = (1, 0) if in_channels > 8 else (2, 46) if in_channels > 4 else (4, 60)
    steps = ceil_div(kernel[0], height) * kernel[1]
    blocks = ceil_div(in_channels, BLOCK) * ceil_div(out_channels, unit.block_out)
    own = ceil_div(np.asarray(positions), unit.workers)
    pieces = np.maximum(1, own / row_length)
    worker = 18 + pieces * (3 + 34 - 9 - 3 * unit.loop_cycles) + unit.loop_cycles * np.maximum(own, 3)
    step = 12 + 18 + loading + unit.weight_load_cycles + unit.workers * worker
    cycles: np.ndarray = 109 + groups * blocks * (14 + steps * step)
    return cycles


def slic_cycles(
    target: Target,
    groups: Counts,
    positions: Counts,
    row_length: int,
    in_channels: int,
    out_channels: Counts,
    kernel: tuple[int, int],
) -> np.ndarray:
    """A float16 convolution with the SLIC vertex: 4 channels to 4, 4 positions of a kernel row at once.

    It uses two of four chains, half of the AMP's rate: two passes over the field on Mk2.
    """
    workers = target.worker_threads_per_tile
    passes = 2 * 4 * 4 * 4 / target.half_macs_per_cycle
    blocks = ceil_div(in_channels, 4) * ceil_div(out_channels, 4) * kernel[0] * ceil_div(kernel[1], 4)
    own = ceil_div(np.asarray(positions), workers)
    pieces = np.maximum(1, own / row_length)
    worker = 10 + pieces * (15 - 5 * passes) + passes * np.maximum(own, 5)
    cycles: np.ndarray = 109 + groups * blocks * (16 + 18 + workers * worker)
    return cycles


def reduction_cycles(unit: Unit, elements: Counts, partials: Counts) -> np.ndarray:
    """Sums `partials` partial sums of `elements` results on this tile (one of them in place)."""
    vector = unit.load_bytes_per_cycle / unit.partial_bytes
    vectors = np.ceil(np.asarray(elements) / (vector * unit.workers))
    cycles = 33 + unit.workers * (20 + vectors * (2 * (partials - 1) + 9))
    return np.where(np.asarray(partials) > 1, cycles, 0.0)
