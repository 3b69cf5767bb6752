"""`python -m ipu.simulator validate ROWS.csv` and `python -m ipu.simulator fit ROWS.csv`."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any, Sequence

import yaml

from ipu_simulator.cost import constants as shipped
from .fitting import Fit, fit, utilisation
from .measured import Measured, measured
from .rows import RowError, RowsError, read_rows
from .text import as_json, as_markdown, as_text
from .validation import validate

COMMANDS = ("validate", "fit")

# Digits of a constant that mean something, and some more.
_DIGITS = 5


def main(arguments: Sequence[str]) -> int:
    """Runs `validate ...` or `fit ...`; returns the exit status, 2 for a user's mistake.

    A row that can't be predicted is named and left out of a validation; a fit wants every row.
    """
    parsed = _parser().parse_args(arguments)
    complain = functools.partial(print, f"ipu.simulator {parsed.command}:", file=sys.stderr)
    try:
        read, unreadable = read_rows(parsed.rows)
        rows, impossible = measured(read)
        faults = sorted([*unreadable, *impossible], key=lambda fault: fault.line)
        for fault in faults:
            complain(fault)
        if faults and (parsed.command == "fit" or not rows):
            return 2
        if parsed.command == "fit":
            _write_constants(fit(rows), rows)
            print(f"wrote {shipped.FILE}")
        else:
            _validate(parsed, rows, faults)
    except (RowsError, OSError) as error:
        complain(error)
        return 2
    return 2 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ipu.simulator", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    validating = commands.add_parser(
        "validate", help="predicts published rows with the shipped constants; never fits them anew"
    )
    validating.add_argument("rows", type=Path, metavar="ROWS.csv")
    validating.add_argument("--json", type=Path, metavar="FILE", help="writes the errors there too")
    validating.add_argument("--markdown", type=Path, metavar="FILE", help="writes docs/accuracy.md's form")
    fitting = commands.add_parser("fit", help="fits the constants to published rows and ships them")
    fitting.add_argument("rows", type=Path, metavar="ROWS.csv")
    return parser


def _validate(
    parsed: argparse.Namespace, rows: Sequence[Measured], not_predicted: Sequence[RowError]
) -> None:
    validation = validate(rows, not_predicted)
    print(as_text(validation))
    if parsed.json:
        parsed.json.write_text(json.dumps(as_json(validation), indent=2) + "\n", encoding="utf-8")
    if parsed.markdown:
        command = f"python -m ipu.simulator validate {parsed.rows} --markdown {parsed.markdown}"
        parsed.markdown.write_text(as_markdown(validation, command), encoding="utf-8")


def _write_constants(made: Fit, rows: Sequence[Measured]) -> None:
    """Values, rows and residuals into the file of constants; its comment and all else stay."""
    text = shipped.FILE.read_text(encoding="utf-8")
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    file: dict[str, Any] = yaml.safe_load(text)
    names = [row.row.id for row in rows]
    for name, entry in file["fitted"].items():
        entry["value"] = _rounded(made.values[name])
        entry["sd"] = _rounded(made.sd[name], 2)
        entry["rows"] = " ".join(names)
    level, factor = utilisation(rows)
    file["baseline"] = {
        "utilisation": {"value": _rounded(level), "unit": "of the float16 peak, nothing computed again"},
        "utilisation_poptorch_factor": {"value": _rounded(factor), "unit": "of PopART's time"},
    }
    file["expected_error"]["value"] = _rounded(validate(rows).leave_one_out.mean, 2)
    file["expected_error"]["rows"] = " ".join(names)
    file["residuals"] = {
        row.row.id: round(row.predicted_s(made.constants) / row.row.step_s - 1, 4) for row in rows
    }
    sections = [
        yaml.safe_dump({name: section}, sort_keys=False, width=118, allow_unicode=True)
        for name, section in file.items()
    ]
    shipped.FILE.write_text("\n".join([comment, *sections]), encoding="utf-8")


def _rounded(value: float, digits: int = _DIGITS) -> float:
    return float(f"{value:.{digits}g}")
