"""Published measurements: a CSV file with one measured pretraining configuration per row."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, TypeVar

from ipu_simulator.cost.constants import FRAMEWORK_FACTORS
from ipu_simulator.environment import TARGETS

from config import nearest

T = TypeVar("T")


# The most digits of a whole number; int() itself accepts a few thousand.
_MOST_DIGITS = 40


class RowsError(ValueError):
    """An invalid file of measurements."""


class RowError(RowsError):
    """An invalid row: its id, line and column, and the problem."""

    def __init__(self, row_id: str, line: int, column: str, problem: str) -> None:
        super().__init__(f"row {row_id!r} (line {line}), column {column}: {problem}")
        self.row_id, self.line, self.column, self.problem = row_id, line, column, problem


@dataclass(frozen=True)
class Row:
    """A measurement. Embedding and heads are on IPU 0; step_s is seconds per weight update.

    :param layers_per_ipu: encoder layers on each IPU; a layer with its two halves on different IPUs counts as
        a half on both.
    :param matmul_proportion: one value per IPU.
    """

    id: str
    line: int
    target: str
    framework: str
    model: str
    sequence_length: int
    packed: bool
    mask_tokens: int
    micro_batch_size: int
    gradient_accumulation: int
    replication_factor: int
    layers_per_ipu: tuple[float, ...]
    optimizer_state: str
    replicated_tensor_sharding: bool
    matmul_proportion: tuple[float, ...]
    embedding_serialization_factor: int
    step_s: float

    def error(self, column: str, problem: str) -> RowError:
        return RowError(self.id, self.line, column, problem)


COLUMNS = tuple(name for name in Row.__dataclass_fields__ if name != "line")


def read_rows(path: Path) -> tuple[list[Row], list[RowError]]:
    """The valid rows of a file, in file order, and the errors of the invalid ones.

    Columns other than COLUMNS are ignored, as are blank lines and lines that begin with #. Raises RowsError
    if the file can't be read at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RowsError(f"can't read {path}: {error}") from None
    try:
        return _rows(path, text)
    except csv.Error as error:
        raise RowsError(f"{path} is not a CSV file: {error}") from None


def _rows(path: Path, text: str) -> tuple[list[Row], list[RowError]]:
    lines = csv.reader(io.StringIO(text, newline=""))
    numbered = [(lines.line_num, cells) for cells in lines if _says_something(cells)]
    if not numbered:
        raise RowsError(f"{path} is empty: expected a header and one row per measurement")
    names = [name.strip() for name in numbered[0][1]]
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise RowsError(f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")
    twice = [column for column in COLUMNS if names.count(column) > 1]
    if twice:
        raise RowsError(f"{path} has more than one column {', '.join(twice)}")
    if len(numbered) == 1:
        raise RowsError(f"{path} has no rows, only a header")
    seen: dict[str, Row] = {}
    faults: list[RowError] = []
    for line, cells in numbered[1:]:
        try:
            row = _Cells(line, dict(zip(names, cells))).row()
            if row.id in seen:
                raise row.error("id", f"the same id as in line {seen[row.id].line}")
            seen[row.id] = row
        except RowError as fault:
            faults.append(fault)
    return list(seen.values()), faults


def _says_something(cells: list[str]) -> bool:
    return any(cell.strip() for cell in cells) and not cells[0].lstrip().startswith("#")


@dataclass(frozen=True)
class _Cells:
    """One line of the file; each method reads a column or raises RowError."""

    line: int
    cells: dict[str, str]

    def row(self) -> Row:
        layers = self._list("layers_per_ipu", self._layers)
        if not any(layers):
            raise self._error("layers_per_ipu", "places no layer")
        if sum(layers) % 1:
            raise self._error(
                "layers_per_ipu", f"places {sum(layers):g} layers: a half layer lacks its other half"
            )
        proportions = self._list("matmul_proportion", self._proportion)
        if len(proportions) not in (1, len(layers)):
            raise self._error(
                "matmul_proportion",
                f"{len(proportions)} values for {len(layers)} IPUs of layers_per_ipu; must be 1 or as many",
            )
        row = Row(
            id=self._text("id"),
            line=self.line,
            target=self._one_of("target", TARGETS),
            framework=self._one_of("framework", FRAMEWORK_FACTORS),
            model=self._text("model"),
            sequence_length=self._count("sequence_length"),
            packed=self._flag("packed"),
            mask_tokens=self._count("mask_tokens"),
            micro_batch_size=self._count("micro_batch_size"),
            gradient_accumulation=self._count("gradient_accumulation"),
            replication_factor=self._count("replication_factor"),
            layers_per_ipu=layers,
            optimizer_state=self._one_of("optimizer_state", ("on_chip", "off_chip")),
            replicated_tensor_sharding=self._flag("replicated_tensor_sharding"),
            matmul_proportion=proportions * (len(layers) if len(proportions) == 1 else 1),
            embedding_serialization_factor=self._count("embedding_serialization_factor"),
            step_s=self._positive("step_s"),
        )
        return row

    def _error(self, column: str, problem: str) -> RowError:
        return RowError(self.cells.get("id", "").strip() or "?", self.line, column, problem)

    def _text(self, column: str) -> str:
        value = self.cells.get(column, "").strip()
        if not value:
            raise self._error(column, "is empty")
        return value

    def _one_of(self, column: str, known: Iterable[str]) -> str:
        value, known = self._text(column), list(known)
        if value not in known:
            raise self._error(column, f"{value!r} is unknown; {nearest(value, known)}")
        return value

    def _count(self, column: str) -> int:
        value = self._text(column)
        if not value.isdecimal() or len(value) > _MOST_DIGITS or int(value) < 1:
            raise self._error(column, f"{_short(value)!r} is not a whole number of at least 1")
        return int(value)

    def _flag(self, column: str) -> bool:
        value = self._text(column)
        if value not in ("0", "1"):
            raise self._error(column, f"{value!r} is neither 0 nor 1")
        return value == "1"

    def _positive(self, column: str) -> float:
        value = self._number(column, self._text(column))
        if value <= 0:
            raise self._error(column, f"{value:g} is not above 0")
        return value

    def _layers(self, column: str, word: str) -> float:
        value = self._number(column, word)
        if value < 0 or value * 2 % 1:
            raise self._error(column, f"{word!r} is not a number of layers or half layers")
        return value

    def _proportion(self, column: str, word: str) -> float:
        value = self._number(column, word)
        if not 0 < value <= 1:
            raise self._error(column, f"{word!r} must be above 0 and at most 1")
        return value

    def _list(self, column: str, read: Callable[[str, str], T]) -> tuple[T, ...]:
        return tuple(read(column, word) for word in self._text(column).split())

    def _number(self, column: str, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._error(column, f"{_short(word)!r} is not a number")
        return value


def _short(word: str) -> str:
    return word if len(word) <= _MOST_DIGITS else f"{word[:_MOST_DIGITS]}..."
