"""Published measurements that no constant was fitted to, and what the model says of them.

`evidence.csv` has one measurement a row, with its source: products on one IPU, times and memory of other
programs. `vertex_cycles.csv` has cycles of convolution vertices of one tile. `held_out.csv` has rows like
those of `published.csv` that stay outside every fit.
"""

from __future__ import annotations

import csv
import functools
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from ipu_simulator.cost.constants import Constants, constants
from ipu_simulator.cost.convolution import Convolution, tile_cycles
from ipu_simulator.cost.matmul import Product, plan
from ipu_simulator.environment import target

from . import foreign_report
from .fit_constants import MeasuredRow, measured
from .published_rows import read_rows

_FOLDER = Path(__file__).resolve().parent
EVIDENCE, VERTICES, HELD_OUT = (
    _FOLDER / name for name in ("evidence.csv", "vertex_cycles.csv", "held_out.csv")
)
_PRODUCT = re.compile(r"FP(?P<bits>16|32) \[(?P<m>\d+),(?P<k>\d+)\]x\[\d+,(?P<n>\d+)\]")
# Poplin's default, with which the products were measured.
_PROPORTION = 0.6


@dataclass(frozen=True)
class Measurement:
    """A row of evidence.csv; `predicted` is in its unit, None if nothing here predicts it."""

    id: str
    kind: str
    what: str
    published: float
    unit: str
    predicted: Optional[float]

    @property
    def error(self) -> Optional[float]:
        return None if self.predicted is None else self.predicted / self.published - 1


def rows_of(path: Path = EVIDENCE) -> List[Dict[str, str]]:
    """The rows of a file of evidence, by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measurements(path: Path = EVIDENCE) -> List[Measurement]:
    """The rows of a file of evidence, with predictions of products."""
    return [
        Measurement(
            row["id"],
            row["kind"],
            f"{row['model']}, {row['machine']}",
            float(row["measured"]),
            row["unit"],
            _product_tflops(row["model"]) if row["kind"].startswith("dense product") else None,
        )
        for row in rows_of(path)
    ]


def _product_tflops(name: str) -> float:
    """TFLOP/s of a product's compute sets, with their syncs and without exchange."""
    product, parts = _compute_sets(name)
    return _tflops(product, sum(parts))


def _tflops(product: Product, cycles: float) -> float:
    return product.flops / cycles * target("pod16").clock_hz / 1e12


def _compute_sets(name: str) -> Tuple[Product, Tuple[float, float, float]]:
    """A product, and the cycles of its plan's passes, of its reduction and of their syncs."""
    found = _PRODUCT.match(name)
    assert found, name
    half = found["bits"] == "16"
    product = Product(1, int(found["m"]), int(found["k"]), int(found["n"]), 2 if half else 4, half)
    made = plan(product, target("pod16"), _PROPORTION)
    syncs = made.serial_splits * (1 + (made.split_k > 1)) * constants().compute_set_cycles
    return product, (made.compute_cycles, made.reduction_cycles, syncs)


@functools.lru_cache(maxsize=None)
def held_out() -> Tuple[MeasuredRow, ...]:
    """The programs of held_out.csv."""
    return tuple(measured(read_rows(HELD_OUT)[0])[0])


def vertex_errors(path: Path = VERTICES) -> List[float]:
    """Relative errors of the cycles of convolution vertices. Fields and kernels are assumed square."""
    errors = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            positions, taps = int(row["output_positions"]), int(row["kernel_positions"])
            side, kernel = math.isqrt(positions), math.isqrt(taps)
            convolution = Convolution(
                int(row["batch"]),
                1,
                int(row["in_channels"]),
                int(row["out_channels"]),
                (positions // side, side),
                (kernel, kernel) if kernel * kernel == taps else (1, taps),
            )
            errors.append(tile_cycles(convolution, target("pod16")) / float(row["cycles"]) - 1)
    return errors


def as_markdown(left_out: Mapping[str, Constants]) -> List[str]:
    """The sections of docs/accuracy.md about this evidence.

    `left_out`: constants fitted without a group of published rows, by the group.
    """
    rows = rows_of()
    products = [row for row in measurements() if row.error is not None]
    vertices = vertex_errors()
    lines = [
        "## Evidence that nothing was fitted to",
        "",
        "`planning/evidence.csv`, `planning/vertex_cycles.csv` and `planning/held_out.csv` have the rows and",
        "their sources.",
        "",
        "| kind | rows | mean | median | max | target |",
        "|---|---|---|---|---|---|",
        _line(
            "products, their compute sets without exchange", products_errors(products), "15%, none beyond 35%"
        ),
        _line("... of at most 64 rows or columns", products_errors(products, few=True), ""),
        _line("convolution vertices of one tile", vertices, "median 10%"),
        "",
        "GroupBERT's one published run (GroupBERT Base, sequence length 512, 4 replicas) doesn't state its",
        "clock, so it is shown under both:",
        "",
        "| machine | published s | predicted s | error |",
        "|---|---|---|---|",
        *(
            f"| {row.row.target} | {row.row.step_s:.3f} | {row.predicted_s(constants()):.3f} | "
            f"{row.predicted_s(constants()) / row.row.step_s - 1:+.1%} |"
            for row in held_out()
        ),
        "",
        "Products by rate; the summary above has the errors of their times, -26% for a rate 35% too high:",
        "",
        "| row | product | published TFLOP/s | predicted | error |",
        "|---|---|---|---|---|",
        *(
            f"| {row.id} | {row.what} | {row.published:g} | {row.predicted:.1f} | {row.error:+.0%} |"
            for row in products
        ),
        "",
        "Small products (1,024 on a side with 32 to 1,024 rows) are too fast: the measured ones seem to use",
        *_large_products(products),
        "",
        *foreign_report.times(rows, left_out),
        *foreign_report.memory(rows),
        *foreign_report.not_predicted(rows),
    ]
    return lines


def _large_products(rows: Sequence[Measurement]) -> List[str]:
    """Why large products in float16 are too slow, shown for the one of the highest published rate."""
    fastest = max((row for row in rows if row.what.startswith("FP16")), key=lambda row: row.published)
    product, (passes, reduction, syncs) = _compute_sets(fastest.what)
    share, alone = reduction / (passes + reduction + syncs), _tflops(product, passes)
    return [
        "fewer tiles than the planner's. Large float16 ones are too slow: up to 96% of the AMP's peak was",
        f"measured. The reduction isn't why: it takes {share:.0%} of {fastest.id}'s cycles, with one partial",
        f"in place, and the AMP's passes alone would reach {alone:.0f} TFLOP/s. Nor are serial splits of k:",
        "with 3, 5, 6, 12, 16 or 32, besides 1, 2, 4 and 8, every plan here stays as it is (tried by hand).",
    ]


def products_errors(rows: Sequence[Measurement], few: bool = False) -> List[float]:
    """Relative errors of cycles, as of all times; `few`: only of products with few rows or columns."""
    return [
        row.published / row.predicted - 1
        for row in rows
        if row.predicted is not None and (not few or min(_sizes(row)) <= 64)
    ]


def _sizes(row: Measurement) -> Tuple[int, int]:
    found = _PRODUCT.match(row.what)
    assert found, row.what
    return int(found["m"]), int(found["n"])


def _line(name: str, errors: Sequence[float], wanted: str) -> str:
    sizes = [abs(error) for error in errors]
    mean, median = statistics.mean(sizes), statistics.median(sizes)
    return f"| {name} | {len(sizes)} | {mean:.1%} | {median:.1%} | {max(sizes):.1%} | {wanted} |"
