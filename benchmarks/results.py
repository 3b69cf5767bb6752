"""Results of a benchmark: a table on the screen, the same as JSON and CSV, and a picture.

Every number belongs to a column, and every column has an origin for its numbers.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import config as configuration
import training

# measured here, predicted by the cost model, published by others, derived by arithmetic from what is named,
# given by the command line or the recipe; a column of words has no origin.
ORIGINS = ("measured", "predicted", "published", "derived", "given", "")

Row = Mapping[str, Any]

# Student's t, two-sided 95%, by degrees of freedom from 1 (any table of the distribution).
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
_T_95_MANY = 1.960


@dataclass(frozen=True)
class Column:
    """`key` of the rows, heading, origin of the numbers, and print format."""

    key: str
    heading: str
    origin: str = ""
    form: str = "{}"

    def __post_init__(self) -> None:
        assert self.origin in ORIGINS, self.origin

    def text(self, row: Row) -> str:
        value = row.get(self.key)
        return "-" if value is None else self.form.format(value)


@dataclass(frozen=True)
class Result:
    """The result of a benchmark. `notes` are sentences about the numbers; `extra` is in the JSON only."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    extra: Optional[Mapping[str, Any]] = None

    def table(self) -> str:
        """The table for a terminal; each column's origin is below its heading."""
        lines = [[column.heading for column in self.columns], [column.origin for column in self.columns]]
        lines += [[column.text(row) for column in self.columns] for row in self.rows]
        numbers = [index for index, column in enumerate(self.columns) if column.origin]
        table = configuration.text_table(lines, headings=2, right=numbers, rule=True)
        return "\n".join([self.title, "", table, "", *self.notes]).rstrip()

    def markdown(self) -> str:
        """The table and the picture as Markdown, for a page in the same folder."""
        cells = [[f"{c.heading} ({c.origin})" if c.origin else c.heading for c in self.columns]]
        cells.append(["---" if column.origin == "" else "---:" for column in self.columns])
        cells += [[column.text(row) for column in self.columns] for row in self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
        paragraphs = [f"## {self.title}", "\n".join(lines), *self.notes]
        return "\n\n".join([*paragraphs, f"![{self.title}]({self.name}.png)"]) + "\n"

    def to_dict(self) -> Dict[str, Any]:
        return {
            "benchmark": self.name,
            "title": self.title,
            "host": host(),
            "columns": [asdict(column) for column in self.columns],
            "rows": [_plain(row) for row in self.rows],
            "notes": list(self.notes),
            **_plain(self.extra or {}),
        }

    def csv_text(self) -> str:
        """A header line of keys, then the rows; an absent value is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in self.columns])
        for row in self.rows:
            values = (row.get(column.key) for column in self.columns)
            writer.writerow(["" if value is None else value for value in values])
        return text.getvalue()


def publish(result: Result, output: Path, draw: Callable[[Any], None]) -> None:
    """Prints the table and writes NAME.json, NAME.csv and NAME.png into `output`.

    `draw` draws on a matplotlib figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n"
    training.write_atomically(output / f"{result.name}.json", text)
    training.write_atomically(output / f"{result.name}.csv", result.csv_text())
    figure = pyplot.figure(figsize=(8, 5), constrained_layout=True)
    draw(figure)
    figure.savefig(output / f"{result.name}.png", dpi=110)
    pyplot.close(figure)
    print(f"\n{result.table()}\n\n{output / result.name}.json, .csv and .png", flush=True)


def host() -> Dict[str, Any]:
    """The machine that the numbers were measured on."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Name of the CPU model on Linux, otherwise the architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN, infinity or tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def missing_note(missing: Sequence[str]) -> List[str]:
    """A note on the work left undone by the time budget; empty if everything is done."""
    if not missing:
        return []
    return [
        f"Not run within the budget: {', '.join(missing)}. The same command with more --budget-minutes "
        "continues where this one stopped."
    ]


def mean_and_half_width(samples: Sequence[float]) -> Tuple[float, float]:
    """The mean and half of its 95% confidence interval (Student's t); the latter is NaN for one sample.

    Assumes independent samples of a normal distribution. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples: their mean isn't defined")
    mean = statistics.fmean(samples)
    freedom = len(samples) - 1
    if freedom == 0:
        return mean, math.nan
    t = _T_95[freedom - 1] if freedom <= len(_T_95) else _T_95_MANY
    return mean, t * statistics.stdev(samples) / math.sqrt(len(samples))


def quartiles(samples: Sequence[float]) -> Tuple[float, float, float]:
    """First quartile, median and third quartile, interpolated between samples; of one sample, itself."""
    if not samples:
        raise ValueError("no samples: their quartiles aren't defined")
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high
