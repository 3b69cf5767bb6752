"""The matmul planner: how poplibs would split a product over tiles, with its cycles and memory.

A product of `groups` matrices [m, k] x [k, n] is split over tiles (groups, m, n and k) and, if memory
requires it, into a series of smaller products (slices of the output channels n, or of the input channels k).
Either operand may be the weights, which stay where they are; some cost copies if they don't (`resident`). As
in poplibs (poplin/ConvPlan.cpp), the planner takes the plan of fewest cycles, then of least memory, whose
temporary bytes per tile are within the available-memory proportion. If there is none, the bound is doubled
until it exceeds twice the tile, then dropped.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..environment import Target
from .matrix_unit import (
    BLOCK,
    NUMBERS_OF_REDUCTION,
    Unit,
    ceil_div,
    numbers_of_product,
    product_cycles,
    reduction_cycles,
    unit_of,
)
from .vertices import OperationConstants, operation_constants

# Numbers of slices that the planner tries: a search space, not a hardware property.
SERIAL_N = (1, 2, 3, 4, 5, 6, 8, 12, 16)
SERIAL_K = (1, 2, 4, 8)


@dataclass(frozen=True)
class Product:
    """`groups` products [m, k] x [k, n] of elements of `input_bytes` (2 or 4).

    :param resident: the operand that stays where it is as the weights: moving it past the other one costs
        copies. "larger" is the rule of a single product, with groups neither stays.
    """

    groups: int
    m: int
    k: int
    n: int
    input_bytes: int = 2
    half_partials: bool = True
    resident: Literal["left", "right", "larger", "neither"] = "larger"

    @property
    def moves_resident(self) -> bool:
        """Whether a plan with [k, n] as the weights moves the operand that should stay."""
        if self.resident == "larger":
            return self.groups == 1 and self.m > self.n
        return self.resident == "left"

    @property
    def mirrored(self) -> Product:
        """The same product with its operands exchanged."""
        others: dict[str, Literal["left", "right"]] = {"left": "right", "right": "left"}
        resident = others.get(self.resident, self.resident)
        return replace(self, m=self.n, n=self.m, resident=resident)

    @property
    def flops(self) -> int:
        return 2 * self.groups * self.m * self.k * self.n


@dataclass(frozen=True)
class MatmulPlan:
    """The chosen plan. Cycles are those of the fullest tile, over all products of the series.

    :param swapped: the operand [m, k] is the weights, so `split_m` and `split_n` split n and m.
    :param swap_cycles: to move the operand that should stay.
    :param temporary_bytes: on one tile, in one product of the series.
    :param within_bound: False if no plan was within the proportion.
    :param numbers: names of the coefficients and constants that its cycles depend on.
    """

    compute_cycles: float
    exchange_cycles: float
    reduction_cycles: float
    serial_cycles: float
    swap_cycles: float
    split_groups: int
    split_m: int
    split_n: int
    split_k: int
    serial_n: int
    serial_k: int
    swapped: bool
    temporary_bytes: int
    within_bound: bool
    numbers: frozenset[str] = frozenset()

    @property
    def cycles(self) -> float:
        inside = self.compute_cycles + self.exchange_cycles + self.reduction_cycles
        return inside + self.serial_cycles + self.swap_cycles

    @property
    def tiles(self) -> int:
        return self.split_groups * self.split_m * self.split_n * self.split_k

    @property
    def serial_splits(self) -> int:
        return self.serial_n * self.serial_k


def plan(product: Product, target: Target, proportion: float) -> MatmulPlan:
    """The plan of a product on one IPU of `target`, for an available-memory proportion in [0, 1].

    A proportion of 0 gives the plan with the least memory.
    """
    unit = unit_of(target, product.input_bytes, product.half_partials)
    return _plan(product, target, proportion, unit, operation_constants())


@functools.cache
def _plan(
    product: Product, target: Target, proportion: float, unit: Unit, constants: OperationConstants
) -> MatmulPlan:
    exchange = (target.exchange_bytes_per_cycle, target.shared_exchange_bytes_per_cycle)
    front = _front(product, unit, target.tiles_per_ipu, *exchange, constants)
    least = front[0].temporary_bytes
    bound = proportion * target.bytes_per_tile
    within = least <= bound
    if bound <= 0:
        bound = least
    while least > bound and bound <= 2 * target.bytes_per_tile:
        bound *= 2
    fitting = front if least > bound else [made for made in front if made.temporary_bytes <= bound]
    chosen = fitting[-1]
    return replace(chosen, within_bound=within, numbers=_numbers(chosen, product, unit))


def _numbers(made: MatmulPlan, product: Product, unit: Unit) -> frozenset[str]:
    """Names of the coefficients and constants that the cycles of a plan depend on."""
    rows = ceil_div(product.n if made.swapped else product.m, made.split_m)
    in_blocks = ceil_div(ceil_div(ceil_div(product.k, made.serial_k), BLOCK), made.split_k)
    names = numbers_of_product(unit, ceil_div(product.groups, made.split_groups), rows, in_blocks)
    names |= NUMBERS_OF_REDUCTION if made.split_k > 1 else frozenset()
    names |= {"serial_cycles", "slice_cycles"} if made.serial_splits > 1 else frozenset()
    names |= {"transform_cycles", "transform_cycles_per_byte"} if made.swap_cycles else frozenset()
    names |= {"update_cycles"} if made.serial_n > 1 else frozenset()
    return names | ({"add_cycles"} if made.serial_k > 1 else frozenset())


@functools.cache
def _front(
    product: Product,
    unit: Unit,
    tiles: int,
    exchange: float,
    shared_exchange: float,
    constants: OperationConstants,
) -> tuple[MatmulPlan, ...]:
    """The Pareto front of cycles and memory, from least memory to fewest cycles."""
    orders = [_one_order(product, unit, tiles, exchange, shared_exchange, constants)]
    if product.m != product.n or product.moves_resident:
        orders.append(_one_order(product.mirrored, unit, tiles, exchange, shared_exchange, constants))
    temporary = np.concatenate([order.temporary for order in orders])
    cycles = np.concatenate([order.cycles for order in orders])
    candidates = _near_the_front(cycles, temporary)
    order = candidates[np.lexsort((cycles[candidates], temporary[candidates]))]
    fewest_so_far = np.minimum.accumulate(cycles[order])
    better = np.flatnonzero(np.diff(fewest_so_far, prepend=np.inf) < 0)
    first = len(orders[0].temporary)
    return tuple(
        orders[0].plan(index, False) if index < first else orders[1].plan(index - first, True)
        for index in order[better].tolist()
    )


def _near_the_front(cycles: np.ndarray, temporary: np.ndarray) -> np.ndarray:
    """Indices of the plans on the Pareto front and of few others: sorting all of them would take longer."""
    # Skip plans that are worse in both than the plan of fewest cycles or of least memory.
    most_cycles = cycles[temporary == temporary.min()].min()
    most_temporary = temporary[cycles == cycles.min()].min()
    candidates = np.flatnonzero((cycles <= most_cycles) & (temporary <= most_temporary))
    cycles, temporary = cycles[candidates], temporary[candidates]
    # Cut the range of memory into equal shares. Skip a plan if one of a lower share is as fast.
    shares = 64
    least, most = temporary.min(), temporary.max()
    share = ((temporary - least) * (shares / (most - least + 1))).astype(np.int64)
    fewest = np.full(shares + 1, np.inf)
    np.minimum.at(fewest, share + 1, cycles)
    near: np.ndarray = candidates[cycles < np.minimum.accumulate(fewest)[share]]
    return near


@dataclass(frozen=True)
class _Candidates:
    """Plans of one operand order, as parallel arrays."""

    compute: np.ndarray
    exchange: np.ndarray
    reduction: np.ndarray
    serial: np.ndarray
    swap: float
    temporary: np.ndarray
    splits: tuple[np.ndarray, ...]

    @property
    def cycles(self) -> np.ndarray:
        cycles: np.ndarray = self.compute + self.exchange + self.reduction + self.serial + self.swap
        return cycles

    def near_the_front(self) -> _Candidates:
        """Without most of those that can't be on the Pareto front, in the same order."""
        kept = _near_the_front(self.cycles, self.temporary)
        return _Candidates(
            self.compute[kept],
            self.exchange[kept],
            self.reduction[kept],
            self.serial[kept],
            self.swap,
            self.temporary[kept],
            tuple(split[kept] for split in self.splits),
        )

    def plan(self, index: int, swapped: bool) -> MatmulPlan:
        groups, m, n, k, serial_n, serial_k = (int(split[index]) for split in self.splits)
        return MatmulPlan(
            compute_cycles=float(self.compute[index]),
            exchange_cycles=float(self.exchange[index]),
            reduction_cycles=float(self.reduction[index]),
            serial_cycles=float(self.serial[index]),
            swap_cycles=self.swap,
            split_groups=groups,
            split_m=m,
            split_n=n,
            split_k=k,
            serial_n=serial_n,
            serial_k=serial_k,
            swapped=swapped,
            temporary_bytes=int(self.temporary[index]),
            within_bound=True,
        )


def _one_order(
    product: Product,
    unit: Unit,
    tiles: int,
    own_exchange: float,
    shared_exchange: float,
    constants: OperationConstants,
) -> _Candidates:
    """The plans with [k, n] as the weights that can be on the Pareto front, and some others."""
    swap = _swap_cycles(product, unit, tiles, own_exchange, constants)
    # A few serial splits at a time, whose arrays a core's cache holds.
    of_serial_n = [
        _candidates(product, unit, tiles, serial_n, own_exchange, shared_exchange, constants, swap)
        for serial_n in SERIAL_N
        if serial_n <= ceil_div(product.n, unit.block_out)
    ]
    kept = [made.near_the_front() for made in of_serial_n]
    return _Candidates(
        compute=np.concatenate([made.compute for made in kept]),
        exchange=np.concatenate([made.exchange for made in kept]),
        reduction=np.concatenate([made.reduction for made in kept]),
        serial=np.concatenate([made.serial for made in kept]),
        swap=swap,
        temporary=np.concatenate([made.temporary for made in kept]),
        splits=tuple(np.concatenate([made.splits[axis] for made in kept]) for axis in range(6)),
    )


def _candidates(
    product: Product,
    unit: Unit,
    tiles: int,
    serial_n: int,
    own_exchange: float,
    shared_exchange: float,
    constants: OperationConstants,
    swap: float,
) -> _Candidates:
    """All plans with [k, n] as the weights and this number of slices of n."""
    parts = [
        _splits(product, tiles, serial_n, serial_k, unit.block_out)
        for serial_k in SERIAL_K
        if serial_k <= ceil_div(product.k, BLOCK)
    ]
    split_g, split_m, split_n, split_k, serial_k, groups, rows, out_blocks, in_blocks = (
        np.concatenate([part[axis] for part in parts]) for axis in range(9)
    )
    slice_n, slice_k = ceil_div(product.n, serial_n), ceil_div(product.k, serial_k)
    columns = np.minimum(out_blocks * unit.block_out, slice_n)
    depth = np.minimum(in_blocks * BLOCK, slice_k)

    input_bytes = groups * rows * depth * unit.input_bytes
    weight_bytes = groups * depth * columns * unit.input_bytes
    outputs = groups * rows * columns
    partial_bytes = outputs * unit.partial_bytes
    result = outputs / split_k
    shared = np.where(split_n % 2 == 0, shared_exchange, own_exchange)
    exchange = (
        input_bytes * (1 - 1 / split_n) / shared
        + weight_bytes * (1 - 1 / split_m) / own_exchange
        + np.where(split_k > 1, partial_bytes / own_exchange, 0.0)
    )
    series = serial_n * serial_k
    outputs_per_tile = product.groups * product.m * product.n / tiles
    weights_per_tile = product.groups * product.k * product.n / tiles
    serial = (
        np.where(
            series > 1, series * constants.serial_cycles + constants.slice_cycles * weights_per_tile, 0.0
        )
        + (constants.update_cycles * outputs_per_tile * serial_k if serial_n > 1 else 0.0)
        + np.where(serial_k > 1, constants.add_cycles * outputs_per_tile * serial_k, 0.0)
    )
    return _Candidates(
        compute=series * product_cycles(unit, groups, rows, in_blocks, out_blocks),
        exchange=series * exchange,
        reduction=series * reduction_cycles(unit, result, split_k),
        serial=serial,
        swap=swap,
        temporary=np.ceil(
            np.maximum(
                input_bytes + weight_bytes + partial_bytes,
                partial_bytes + np.where(split_k > 1, result * unit.input_bytes, 0.0),
            )
        ),
        splits=(split_g, split_m, split_n, split_k, np.full(series.shape, serial_n), serial_k),
    )


def _swap_cycles(
    product: Product, unit: Unit, tiles: int, exchange: float, constants: OperationConstants
) -> float:
    """To move the operand that should stay: it and the result change their layout (poplin/ConvPlan.cpp)."""
    if not product.moves_resident:
        return 0.0
    elements = product.groups * product.m * (product.k + product.n)
    moved = elements * unit.input_bytes / tiles
    return 2 * constants.transform_cycles + moved * (constants.transform_cycles_per_byte + 1 / exchange)


def _splits(
    product: Product, tiles: int, serial_n: int, serial_k: int, block_out: int
) -> tuple[np.ndarray, ...]:
    """Splits over (groups, m, n, k) that use no more than all tiles; `serial_k`, repeated; then the largest
    part of each: groups, rows, blocks of n, blocks of k.
    """
    slice_n = ceil_div(ceil_div(product.n, serial_n), block_out)
    slice_k = ceil_div(ceil_div(product.k, serial_k), BLOCK)
    used = np.array([1], np.int64)
    columns: list[np.ndarray] = []
    totals = (product.groups, product.m, slice_n, slice_k)
    options = [tight_splits(total, tiles) for total in totals]
    for of_axis in options:
        tiles_used = np.multiply.outer(used, of_axis)
        row, column = np.nonzero(tiles_used <= tiles)
        columns = [earlier[row] for earlier in columns]
        columns.append(column)
        used = tiles_used[row, column]
    splits = [of_axis[column] for of_axis, column in zip(options, columns)]
    largest = [ceil_div(total, of_axis)[column] for total, of_axis, column in zip(totals, options, columns)]
    return (*splits, np.full(used.shape, serial_k, np.int64), *largest)


@functools.cache
def tight_splits(total: int, most: int) -> np.ndarray:
    """Numbers of parts without empty parts; for each size of the largest part, the smallest such number."""
    parts = np.arange(1, min(total, most) + 1)
    tight: np.ndarray = parts[ceil_div(total, ceil_div(total, parts)) == parts]
    return tight
