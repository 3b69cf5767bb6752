"""The project's benchmarks: the subcommands of run_benchmark.py.

A subcommand's module is imported only when that subcommand runs: several need seconds to import.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, NamedTuple, Protocol

if TYPE_CHECKING:
    from .results import Result
    from .trainings import Budget


class Benchmark(Protocol):
    """The implementation of a subcommand: a module of this package, or an entry of `study`."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's flags; --output and --budget-minutes exist already."""

    def run(self, flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
        """Writes its files into the folder `output` and returns the result.

        Raises ValueError subclasses for mistakes that a user can correct.
        """


def positive(text: str) -> int:
    """Type of a flag that is a positive integer, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


class Command(NamedTuple):
    question: str
    load: Callable[[], Benchmark]


def _time_to_train() -> Benchmark:
    from . import times

    return times


def _verdicts() -> Benchmark:
    from . import verdicts

    return verdicts


def _downstream() -> Benchmark:
    from . import downstream

    return downstream


def _throughput() -> Benchmark:
    from . import throughput

    return throughput


def _ablation() -> Benchmark:
    from . import study

    return study.ABLATION


def _pareto() -> Benchmark:
    from . import study

    return study.PARETO


def _attention() -> Benchmark:
    from . import attention

    return attention


def _learning_rate() -> Benchmark:
    from . import study

    return study.LEARNING_RATE


def _speed() -> Benchmark:
    from . import speed

    return speed


def _acceptance() -> Benchmark:
    from . import acceptance

    return acceptance


def _everything() -> Benchmark:
    from . import everything

    return everything


COMMANDS: Dict[str, Command] = {
    "time-to-train": Command("how long whole recipes take, and how long until a target loss", _time_to_train),
    "verdicts": Command("the verdict on every published recipe", _verdicts),
    "downstream": Command("predicted speed of fine-tuning and inference on POD4 and POD16", _downstream),
    "throughput": Command("samples/s, tokens/s and utilisation of training", _throughput),
    "ablation": Command("from BERT to GroupBERT, one enhancement at a time (Figure 5)", _ablation),
    "pareto": Command("BERT and GroupBERT sizes, loss against FLOPs (Figure 6)", _pareto),
    "attention": Command("attention by relative position, of two checkpoints (Figure 3)", _attention),
    "learning-rate": Command("learning rates that PreNorm and PostNorm tolerate", _learning_rate),
    "speed": Command("the simulator compared with plain PyTorch and Hugging Face's Trainer", _speed),
    "acceptance": Command(
        "ten minutes on an IPU host: the device against simulator and verdict", _acceptance
    ),
    "all": Command("every table and picture, at demo scale", _everything),
}
