"""Convolutions on the matrix unit (AMP), as poplibs plans them: dense, grouped, and their gradients.

A 1x1 convolution is a matmul (poplin/ConvPlan.cpp). For others there are two kinds of plan, of which the
cheaper one counts: directly, with the AMP (nx1 vertex) or the SLIC vertex; or with the kernel's positions
moved into the input channels (expanded dimensions), as one matmul with more input channels. Each group of
channels occupies blocks of the AMP exclusively: 16 channels fill a block, fewer leave part of it idle.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from ..environment import Target
from .matmul import Product, plan, tight_splits
from .matrix_unit import (
    BLOCK,
    NUMBERS_OF_SLIC,
    Counts,
    ceil_div,
    kernel_cycles,
    numbers_of_kernel,
    product_cycles,
    slic_cycles,
    unit_of,
)
from .vertices import operation_constants


@dataclass(frozen=True)
class Convolution:
    """`groups` convolutions from in_channels to out_channels each, over `batch` samples.

    :param field: rows and columns of one sample's output.
    :param kernel: rows and columns of the kernel.
    """

    batch: int
    groups: int
    in_channels: int
    out_channels: int
    field: tuple[int, int]
    kernel: tuple[int, int]
    input_bytes: int = 2
    half_partials: bool = True

    @property
    def positions(self) -> int:
        return self.field[0] * self.field[1]

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def flops(self) -> int:
        outputs = self.batch * self.positions * self.groups * self.out_channels
        return 2 * outputs * self.in_channels * self.taps

    @property
    def as_product(self) -> Product:
        """As a matmul, with the kernel's positions moved into the input channels."""
        return Product(
            self.groups,
            self.batch * self.positions,
            self.in_channels * self.taps,
            self.out_channels,
            self.input_bytes,
            self.half_partials,
            resident="right",
        )


@dataclass(frozen=True)
class ConvolutionPlan:
    """Cycles of the fullest tile, temporary bytes of one tile.

    :param numbers: names of the coefficients and constants that its cycles depend on.
    """

    cycles: float
    temporary_bytes: int
    numbers: frozenset[str] = frozenset()


@functools.cache
def plan_convolution(convolution: Convolution, target: Target, proportion: float) -> ConvolutionPlan:
    """The plan of a forward pass, or of an input's gradient, which is a convolution too."""
    expanded = _expanded(convolution, convolution.as_product, target, proportion)
    if convolution.taps == 1:
        return expanded
    in_place = _in_place(convolution, target, proportion * target.bytes_per_tile)
    return min(expanded, in_place, key=lambda made: made.cycles)


@functools.cache
def plan_weights_gradient(convolution: Convolution, target: Target, proportion: float) -> ConvolutionPlan:
    """The gradient of a convolution's weights, as a product over all output positions.

    Its input channels are the positions, its rows the pairs of a channel and a position of the kernel.
    """
    product = convolution.as_product
    gradient = replace(product, m=product.k, k=product.m, resident="neither")
    return _expanded(convolution, gradient, target, proportion)


def gradient_of_input(convolution: Convolution) -> Convolution:
    """The convolution of an input's gradient, with inputs and outputs exchanged.

    With strides it takes as many steps as the forward pass, not one for each position of the input: the
    others meet zeros between the results' gradients, which poplibs skips.
    """
    return replace(convolution, in_channels=convolution.out_channels, out_channels=convolution.in_channels)


def _expanded(
    convolution: Convolution, product: Product, target: Target, proportion: float
) -> ConvolutionPlan:
    """A product, after a copy of the input for each position of the kernel (poplin/ConvPlan.cpp)."""
    made = plan(product, target, proportion)
    if convolution.taps == 1:
        return ConvolutionPlan(made.cycles, made.temporary_bytes, made.numbers)
    constants = operation_constants()
    elements = convolution.batch * convolution.positions * convolution.groups
    copied = elements * convolution.in_channels * convolution.taps * convolution.input_bytes
    copies = constants.transform_cycles + copied / target.tiles_per_ipu * (
        constants.transform_cycles_per_byte + 1 / target.exchange_bytes_per_cycle
    )
    numbers = made.numbers | {"transform_cycles", "transform_cycles_per_byte"}
    return ConvolutionPlan(made.cycles + copies, made.temporary_bytes, numbers)


def _in_place(convolution: Convolution, target: Target, bound: float) -> ConvolutionPlan:
    """Split over groups, positions and output channels; each tile also receives a halo of neighbours."""
    unit = unit_of(target, convolution.input_bytes, convolution.half_partials)
    rows = convolution.batch * convolution.positions
    options = [
        tight_splits(total, target.tiles_per_ipu)
        for total in (convolution.groups, rows, ceil_div(convolution.out_channels, unit.block_out))
    ]
    split_g, split_m, split_n = (axis.ravel() for axis in np.meshgrid(*options, indexing="ij"))
    legal = split_g * split_m * split_n <= target.tiles_per_ipu
    split_g, split_m, split_n = split_g[legal], split_m[legal], split_n[legal]
    groups, here = ceil_div(convolution.groups, split_g), ceil_div(rows, split_m)
    out_blocks = ceil_div(ceil_div(convolution.out_channels, unit.block_out), split_n)
    columns = np.minimum(out_blocks * unit.block_out, convolution.out_channels)
    margin = (convolution.kernel[0] - 1) * convolution.field[1] + convolution.kernel[1] - 1
    inputs = groups * convolution.in_channels * (here + margin) * unit.input_bytes
    weights = groups * convolution.in_channels * columns * convolution.taps * unit.input_bytes
    partials = groups * here * columns * unit.partial_bytes
    shared = np.where(
        split_n % 2 == 0, target.shared_exchange_bytes_per_cycle, target.exchange_bytes_per_cycle
    )
    cycles = _compute(convolution, target, groups, here, columns) + inputs / shared
    cycles = cycles + weights * (1 - 1 / split_m) / target.exchange_bytes_per_cycle
    temporary = inputs + weights + partials
    fitting = np.flatnonzero(temporary <= max(bound, temporary.min()))
    index = int(fitting[np.argmin(cycles[fitting])])
    by_window = _is_by_window(convolution, target, int(groups[index]), int(here[index]), int(columns[index]))
    numbers = NUMBERS_OF_SLIC if by_window else numbers_of_kernel(convolution.in_channels)
    return ConvolutionPlan(float(cycles[index]), int(temporary[index]), numbers)


def _compute(
    convolution: Convolution, target: Target, groups: Counts, positions: Counts, out_channels: Counts
) -> np.ndarray:
    """Cycles of one tile, with the faster vertex."""
    by_tap, by_window = _by_vertex(convolution, target, groups, positions, out_channels)
    faster: np.ndarray = by_tap if by_window is None else np.minimum(by_tap, by_window)
    return faster


def _is_by_window(
    convolution: Convolution, target: Target, groups: int, positions: int, out_channels: int
) -> bool:
    """Whether the SLIC vertex is the faster one."""
    by_tap, by_window = _by_vertex(convolution, target, groups, positions, out_channels)
    return by_window is not None and bool(by_window < by_tap)


def _by_vertex(
    convolution: Convolution, target: Target, groups: Counts, positions: Counts, out_channels: Counts
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cycles of one tile with the nx1 vertex, and with the SLIC vertex, which takes float16 only.

    The nx1 vertex uses 8 units of the AMP, whatever its partial sums: measured vertices say so.
    """
    unit = unit_of(target, convolution.input_bytes, half_partials=False)
    row_length, in_channels = convolution.field[1], convolution.in_channels
    kernel = convolution.kernel
    by_tap = kernel_cycles(unit, groups, positions, row_length, in_channels, out_channels, kernel)
    if convolution.input_bytes > 2:
        return by_tap, None
    return by_tap, slic_cycles(target, groups, positions, row_length, in_channels, out_channels, kernel)


def tile_cycles(convolution: Convolution, target: Target) -> float:
    """A whole convolution on one tile, without exchange: for comparison with measured vertices.

    The kernel's positions may move into the input channels if together they fill one block.
    """
    positions = convolution.batch * convolution.positions
    cycles = float(_compute(convolution, target, convolution.groups, positions, convolution.out_channels))
    if convolution.in_channels * convolution.taps <= BLOCK:
        unit = unit_of(target, convolution.input_bytes, convolution.half_partials)
        out_blocks = ceil_div(convolution.out_channels, unit.block_out)
        cycles = min(cycles, float(product_cycles(unit, convolution.groups, positions, 1, out_blocks)))
    return cycles
