"""The numbers that operations cost, vertices.json; an operation's row (op_table.py) names the ones it takes,
and the planners name the coefficients of the matrix unit that act on their plans.

The file explains its entries, and gives each number's unit, origin and source.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from .verdict import Assumption, Origin

FILE = Path(__file__).with_name("vertices.json")


@dataclass(frozen=True)
class Vertex:
    """What an elementwise operation, a reduction, a copy costs.

    :param half_cycles: of a tile for each element there, in types of 2 bytes; `float_cycles` in wider ones.
    :param elements: "largest": of the largest tensor; "outputs": of the largest output.
    :param rearranged: its elements move into another layout.
    """

    name: str
    kind: str
    half_cycles: float
    float_cycles: float
    compute_sets: int
    origin: Origin
    source: str
    elements: str = "largest"
    rearranged: bool = False

    def cycles(self, half: bool) -> float:
        return self.half_cycles if half else self.float_cycles

    def cycles_name(self, half: bool) -> str:
        """Name of that number among a verdict's assumptions."""
        return f"{self.name}, {'float16' if half else 'float32'}"

    @property
    def compute_sets_name(self) -> str:
        return f"{self.name}, compute sets"

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """Its numbers, for reports."""
        unit = f"cycles/element of the largest {'output' if self.elements == 'outputs' else 'tensor'}/tile"
        cycles = [
            Assumption(self.cycles_name(half), self.cycles(half), unit, self.origin, self.source)
            for half in (True, False)
        ]
        sets = Assumption(
            self.compute_sets_name, float(self.compute_sets), "compute sets", self.origin, self.source
        )
        return (*cycles, sets)


@dataclass(frozen=True)
class OperationConstants:
    """Numbers of products, convolutions and lookups, and the bound for what has no rule."""

    product_compute_sets: int
    reduction_compute_sets: int
    convolution_layout_compute_sets: int
    serial_cycles: float
    slice_cycles: float
    update_cycles: float
    add_cycles: float
    transform_cycles: float
    transform_cycles_per_byte: float
    four_byte_atoms_factor: float
    two_byte_atoms_factor: float
    bias_cycles: float
    bias_compute_sets: int
    bias_gradient_cycles: float
    bias_gradient_compute_sets: int
    lookup_compute_sets: int
    lookup_atom_elements: int
    gather_cycles: float
    gather_cycles_per_row: float
    gather_cycles_per_element: float
    gather_cycles_per_other_row: float
    scatter_cycles: float
    scatter_cycles_per_row: float
    scatter_cycles_per_element: float
    scatter_cycles_per_other_row: float
    unknown_cycles: float
    unknown_compute_sets: int


@dataclass(frozen=True)
class MatrixUnitConstants:
    """Coefficients of poplibs' formulas for the matrix unit (matrix_unit.py)."""

    product_vertex_cycles: int
    product_vertex_worker_cycles: int
    product_vertex_state_cycles: int
    product_vertex_group_cycles: int
    product_vertex_first_block_cycles: int
    product_vertex_block_cycles: int
    product_vertex_weights_cycles: int
    product_vertex_positions_cycles: int
    product_vertex_two_positions_cycles: int
    product_vertex_one_position_cycles: int
    nx1_vertex_cycles: int
    nx1_vertex_block_cycles: int
    nx1_vertex_step_cycles: int
    nx1_vertex_8_channels_cycles: int
    nx1_vertex_4_channels_cycles: int
    nx1_vertex_worker_cycles: int
    nx1_vertex_row_cycles: int
    slic_vertex_cycles: int
    slic_vertex_block_cycles: int
    slic_vertex_worker_cycles: int
    slic_vertex_row_cycles: int
    reduction_vertex_cycles: int
    reduction_vertex_worker_cycles: int
    reduction_vertex_vector_cycles: int
    reduction_vertex_partial_cycles: int


@functools.cache
def content() -> Mapping[str, Mapping[str, Any]]:
    """The file, as it is."""
    read: Mapping[str, Mapping[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return read


@functools.cache
def operation_constants() -> OperationConstants:
    return OperationConstants(**{name: entry["value"] for name, entry in content()["constants"].items()})


@functools.cache
def matrix_unit_constants() -> MatrixUnitConstants:
    return MatrixUnitConstants(**{name: entry["value"] for name, entry in content()["matrix_unit"].items()})


@functools.cache
def vertices() -> Mapping[str, Vertex]:
    """By name."""
    return {name: Vertex(name, **entry) for name, entry in content()["vertices"].items()}


def operation_assumptions() -> tuple[Assumption, ...]:
    """All numbers of the file, for reports."""
    of_rules = [
        Assumption(name, float(entry["value"]), entry["unit"], entry["origin"], entry["source"])
        for section in ("constants", "matrix_unit")
        for name, entry in content()[section].items()
    ]
    return (*of_rules, *(each for vertex in vertices().values() for each in vertex.assumptions))
