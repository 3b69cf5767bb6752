#!/usr/bin/env python3
"""Benchmarks this program and reproduces the results of the GroupBERT paper.

    python run_benchmark.py all --budget-minutes 15
    python run_benchmark.py ablation --scale study --corpus TEXT --validation-corpus TEXT --seeds 3

Each subcommand prints a table and writes NAME.json, NAME.csv and NAME.png; each column states whether its
numbers are measured, predicted by the cost model, published, derived or given. `main(argv)` returns the
result; only `__main__` converts it, or an error, to an exit status.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C during imports ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Sequence

import command_line
import config as configuration
from benchmarks import COMMANDS, Benchmark

if TYPE_CHECKING:
    from benchmarks.results import Result

DEFAULT_OUTPUT = Path("output/benchmarks")


def main(argv: Optional[Sequence[str]] = None) -> Result:
    """Runs one subcommand. Raises ValueError subclasses for mistakes that a user can correct."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = configuration.FlagParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    loaded: Dict[str, Benchmark] = {}
    for name, (question, load) in COMMANDS.items():
        command = commands.add_parser(name, help=question, description=question)
        if name in arguments[:1]:  # don't import the modules of the others
            loaded[name] = load()
            _add_common_flags(command)
            loaded[name].add_flags(command)
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:  # report it by the subcommand's parser, which suggests the nearest flags
        commands.choices[flags.command].error(f"unrecognized arguments: {' '.join(unknown)}")

    from benchmarks.trainings import Budget

    try:  # fail now, not after an hour of training
        flags.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise configuration.ConfigError(f"the output folder {flags.output} can't be used: {error}") from error
    return loaded[flags.command].run(flags, flags.output, Budget(flags.budget_minutes))


def _add_common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help=f"folder for the results [{DEFAULT_OUTPUT}]"
    )
    parser.add_argument(
        "--budget-minutes", type=_minutes, help="stop after this time; the same command continues [no limit]"
    )


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of minutes")
    return minutes


if __name__ == "__main__":
    sys.exit(command_line.run_as_program(main))
