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
from .vertices import MatrixUnitConstants, matrix_unit_constants

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
    :param constants: coefficients of the formulas.
    """

    macs_per_cycle: int
    block_out: int
    input_bytes: int
    partial_bytes: int
    fact: str
    workers: int
    load_bytes_per_cycle: int
    constants: MatrixUnitConstants

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
        rate,
        block_out,
        stored,
        partial,
        fact,
        target.worker_threads_per_tile,
        target.load_bytes_per_cycle,
        matrix_unit_constants(),
    )


def product_cycles(
    unit: Unit, groups: Counts, rows: Counts, in_blocks: Counts, out_blocks: Counts
) -> np.ndarray:
    """[rows, 16 in_blocks] x [16 in_blocks, block_out out_blocks], `groups` times, on one tile.

    The first block of inputs zeroes the partial sums, which saves a worker one cycle.
    """
    made = unit.constants
    inner = unit.workers * _positions_cycles(unit, rows)
    load = made.product_vertex_weights_cycles + unit.weight_load_cycles
    accumulating = (in_blocks - 1) * (made.product_vertex_block_cycles + out_blocks * (load + inner))
    zeroing = made.product_vertex_first_block_cycles + out_blocks * (load + inner - unit.workers)
    states = made.product_vertex_state_cycles * (in_blocks * groups - 1)
    workers = unit.workers * (made.product_vertex_worker_cycles + states)
    cycles: np.ndarray = (
        made.product_vertex_cycles
        + workers
        + groups * (made.product_vertex_group_cycles + accumulating + zeroing)
    )
    return cycles


def _positions_cycles(unit: Unit, rows: Counts) -> np.ndarray:
    """A worker's cycles for its positions of one block, without zeroing."""
    made = unit.constants
    positions = ceil_div(np.asarray(rows), unit.workers)
    many = made.product_vertex_positions_cycles + unit.loop_cycles * (positions - 3)
    few = np.where(
        positions == 2, made.product_vertex_two_positions_cycles, made.product_vertex_one_position_cycles
    )
    return np.where(positions >= 3, many, few)


def numbers_of_product(unit: Unit, groups: int, rows: int, in_blocks: int) -> frozenset[str]:
    """Names of the coefficients that act on `product_cycles`."""
    positions = ceil_div(rows, unit.workers)
    names = {"", "worker", "group", "first_block", "weights"}
    names.add("positions" if positions >= 3 else "two_positions" if positions == 2 else "one_position")
    if in_blocks > 1:
        names.add("block")
    if in_blocks * groups > 1:
        names.add("state")
    return frozenset("_".join(filter(None, ("product_vertex", name, "cycles"))) for name in names)


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
    made = unit.constants
    height, loading = _rows_at_once(unit, in_channels)
    steps = ceil_div(kernel[0], height) * kernel[1]
    blocks = ceil_div(in_channels, BLOCK) * ceil_div(out_channels, unit.block_out)
    own = ceil_div(np.asarray(positions), unit.workers)
    pieces = np.maximum(1, own / row_length)
    worker = (
        made.nx1_vertex_worker_cycles
        + pieces * (made.nx1_vertex_row_cycles - 3 * unit.loop_cycles)
        + unit.loop_cycles * np.maximum(own, 3)
    )
    step = made.nx1_vertex_step_cycles + loading + unit.weight_load_cycles + unit.workers * worker
    cycles: np.ndarray = made.nx1_vertex_cycles + groups * blocks * (
        made.nx1_vertex_block_cycles + steps * step
    )
    return cycles


def _rows_at_once(unit: Unit, in_channels: int) -> tuple[int, int]:
    """(rows of the kernel that the AMP processes at once, cycles to load their weights)."""
    if in_channels > 8:
        return 1, 0
    if in_channels > 4:
        return 2, unit.constants.nx1_vertex_8_channels_cycles
    return 4, unit.constants.nx1_vertex_4_channels_cycles


def numbers_of_kernel(in_channels: int) -> frozenset[str]:
    """Names of the coefficients that act on `kernel_cycles`."""
    names = {f"nx1_vertex_{name}cycles" for name in ("", "block_", "step_", "worker_", "row_")}
    if in_channels <= 8:
        names.add(f"nx1_vertex_{8 if in_channels > 4 else 4}_channels_cycles")
    return frozenset(names)


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
    made, workers = matrix_unit_constants(), target.worker_threads_per_tile
    passes = 2 * 4 * 4 * 4 / target.half_macs_per_cycle
    blocks = ceil_div(in_channels, 4) * ceil_div(out_channels, 4) * kernel[0] * ceil_div(kernel[1], 4)
    own = ceil_div(np.asarray(positions), workers)
    pieces = np.maximum(1, own / row_length)
    worker = (
        made.slic_vertex_worker_cycles
        + passes * pieces * (made.slic_vertex_row_cycles - 5)
        + passes * np.maximum(own, 5)
    )
    cycles: np.ndarray = made.slic_vertex_cycles + groups * blocks * (
        made.slic_vertex_block_cycles + workers * worker
    )
    return cycles


NUMBERS_OF_SLIC = frozenset(f"slic_vertex_{name}cycles" for name in ("", "block_", "worker_", "row_"))


def reduction_cycles(unit: Unit, elements: Counts, partials: Counts) -> np.ndarray:
    """Sums `partials` partial sums of `elements` results on this tile (one of them in place)."""
    made = unit.constants
    vector = unit.load_bytes_per_cycle / unit.partial_bytes
    vectors = np.ceil(np.asarray(elements) / (vector * unit.workers))
    each = made.reduction_vertex_partial_cycles * (partials - 1) + made.reduction_vertex_vector_cycles
    cycles = made.reduction_vertex_cycles + unit.workers * (
        made.reduction_vertex_worker_cycles + vectors * each
    )
    return np.where(np.asarray(partials) > 1, cycles, 0.0)


NUMBERS_OF_REDUCTION = frozenset(
    f"reduction_vertex_{name}cycles" for name in ("", "worker_", "vector_", "partial_")
)
