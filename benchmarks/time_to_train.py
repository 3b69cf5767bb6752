"""How long whole recipes take over equal numbers of sequences, phase by phase and in all (Figure 7).

On IPUs the step time is measured; elsewhere it is the cost model's prediction. With --target-loss: how long
until a held-out loss is reached (time_to_target.py).
"""

from __future__ import annotations

import argparse
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import config as configuration
import ipu
from config import Config, ConfigError

from . import time_to_target
from .results import Column, Result, missing_note, publish
from .steps import flops_per_sample, timed_steps
from .trainings import Budget

_DEFAULTS = (
    "bert_large_128_pod16 bert_large_512_pod16 groupbert_base_128_pod16 groupbert_base_512_pod16 "
    "bert_base_128_pod16 bert_base_512_pod16"
).split()
_MEASURED_CALLS = 5

# "Halves the parameters and reduces training time by 50% at the same accuracy": to BERT Large.
_ARTICLE = (
    "Published (Graphcore's GroupBERT article, January 2022): half the training time of BERT Large at equal "
    "accuracy. Compare GroupBERT Base with BERT Large, whose loss its authors compare it to."
)


@dataclass(frozen=True)
class Phase:
    """One recipe of a line of recipes that are trained one after the other."""

    name: str
    config: Config
    number: int
    line: str

    @property
    def global_batch(self) -> int:
        config = self.config
        return config.micro_batch_size * config.gradient_accumulation * config.replication_factor


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configs", nargs="+", default=None, metavar="NAME", help=f"recipes [{' '.join(_DEFAULTS)}]"
    )
    parser.add_argument(
        "--recipes", type=Path, default=configuration.CONFIGS, metavar="FILE", help="file of recipes"
    )
    parser.add_argument("--device", default="auto", help="auto, ipu or simulator [auto]")
    time_to_target.add_flags(parser)


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    if flags.target_loss is not None:
        return time_to_target.run(flags, output, budget)
    phases = lines_of(flags.configs or _DEFAULTS, flags.recipes)
    device = ipu.select_device(flags.device)
    print(device.banner(), flush=True)
    if device.name == "ipu-model":
        raise ConfigError("device ipu-model: Poplar's IPU model tells no time; use ipu or simulator")
    origin = "measured" if device.name == "ipu" else "predicted"
    rows, missing = _rows(phases, device, budget)
    result = Result(
        "time-to-train",
        "Time to train over equal numbers of sequences",
        _columns(origin),
        rows,
        [
            "Equal sequences: those of the first line's recipe of the same phase. Compilation, evaluation "
            "and checkpoints are not in it.",
            _ARTICLE,
            *missing_note(missing),
        ],
        extra={"device": device.name, "step_time": origin},
    )
    publish(result, output, lambda figure: _draw(figure, rows, origin))
    return result


def _columns(origin: str) -> Sequence[Column]:
    return (
        Column("line", "recipes"),
        Column("phase", "phase"),
        Column("sequence_length", "length", "given"),
        Column("sequences", "sequences", "given", "{:,}"),
        Column("global_batch", "batch", "given", "{:,}"),
        Column("steps", "updates", "derived", "{:,}"),
        Column("step_s", "s/update", origin, "{:.3f}"),
        Column("samples_per_s", "sequences/s", origin, "{:,.0f}"),
        Column("hours", "hours", origin, "{:.1f}"),
        Column("against_first", "of the first", "derived", "{:.2f}"),
        Column("flops", "FLOPs", "derived", "{:.3g}"),
        Column("fits", "fits", "predicted"),
    )


def lines_of(names: Sequence[str], recipes: Path) -> List[Phase]:
    """The recipes in lines: what differs in the sequence length alone belongs together, shorter first.

    Raises ConfigError for an unknown recipe and for one that isn't pretraining.
    """
    lines: Dict[str, List[Any]] = {}
    for name in names:
        config = configuration.load(name, path=recipes)
        if config.task != "pretraining" or not config.training_steps:
            raise ConfigError(f"{name} is a {config.task} recipe; time-to-train takes pretraining recipes")
        line = re.sub(rf"_{config.sequence_length}(?=_|$)", "", name)
        lines.setdefault(line, []).append((config.sequence_length, name, config))
    return [
        Phase(name, config, number, line)
        for line, members in lines.items()
        for number, (_, name, config) in enumerate(sorted(members, key=lambda member: member[:2]), 1)
    ]


def _rows(phases: Sequence[Phase], device: ipu.DeviceChoice, budget: Budget) -> Any:
    """A row for each phase and one for each line of several, and the names that the budget left out."""
    reference: Dict[int, int] = {}
    for phase in phases:
        reference.setdefault(phase.number, phase.config.training_steps * phase.global_batch)
    rows: List[Dict[str, Any]] = []
    missing = []
    first_hours: Dict[Any, float] = {}
    for line in dict.fromkeys(phase.line for phase in phases):
        parts = []
        members = [phase for phase in phases if phase.line == line]
        for phase in members:
            if budget.is_spent:
                missing.append(phase.name)
                continue
            parts.append(_row(phase, reference[phase.number], device))
        if len(parts) == len(members) and len(parts) > 1:
            total = {
                key: sum(part[key] for part in parts) for key in ("sequences", "steps", "hours", "flops")
            }
            parts.append({"line": line, "phase": "all", **total, "fits": all(part["fits"] for part in parts)})
        for part in parts:
            first_hours.setdefault(part["phase"], part["hours"])
            part["against_first"] = part["hours"] / first_hours[part["phase"]]
        rows += parts
    return rows, missing


def _row(phase: Phase, sequences: int, device: ipu.DeviceChoice) -> Dict[str, Any]:
    config = phase.config
    steps = -(-sequences // phase.global_batch)
    if device.name == "ipu":
        calls = timed_steps(config, device, "generated", 1 + _MEASURED_CALLS)[1:]
        step_s = statistics.median(call.total_s for call in calls) / config.device_iterations
        fits = True
    else:
        step_s, fits = predicted_step_s(config, phase.name)
    return {
        "line": phase.line,
        "name": phase.name,
        "phase": str(phase.number),
        "sequence_length": config.sequence_length,
        "sequences": sequences,
        "global_batch": phase.global_batch,
        "steps": steps,
        "step_s": step_s,
        "samples_per_s": phase.global_batch / step_s,
        "hours": steps * step_s / 3600,
        "flops": float(flops_per_sample(config)) * sequences,
        "fits": fits,
    }


def predicted_step_s(config: Config, name: str) -> Tuple[float, bool]:
    """Seconds of a weight update on `config.target`, and whether the program fits there (predicted)."""
    from planning import dry_run

    verdict = dry_run.verdict_of(config, name)
    return verdict.step_s, verdict.fits


def _draw(figure: Any, rows: Sequence[Dict[str, Any]], origin: str) -> None:
    axes = figure.subplots()
    bottoms: Dict[str, float] = {}
    numbers = sorted({row["phase"] for row in rows if row["phase"] != "all"})
    for number in numbers:
        chosen = [row for row in rows if row["phase"] == number]
        names = [row["line"] for row in chosen]
        hours = [row["hours"] for row in chosen]
        axes.barh(names, hours, left=[bottoms.get(name, 0.0) for name in names], label=f"phase {number}")
        for name, part in zip(names, hours):
            bottoms[name] = bottoms.get(name, 0.0) + part
    for name, total in bottoms.items():
        axes.text(total, name, f" {total:.1f} h", va="center")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set(xlabel=f"hours ({origin})", title="Time to train, equal sequences")
    axes.legend()
