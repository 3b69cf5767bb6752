"""Training time of whole recipes over equal numbers of sequences, per phase and in total (Figure 7).

On IPUs the step time is measured; elsewhere it is the cost model's prediction. With --target-loss the recipes
are trained until their held-out masked-LM loss reaches a target: updates, sequences, FLOPs, time.
"""

from __future__ import annotations

import argparse
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import command_line
import config as configuration
import ipu
from config import Config, ConfigError

from .results import Column, Result, missing_note, publish
from .steps import flops_per_sample, timed_steps
from .trainings import Budget, Trained, trained

if TYPE_CHECKING:
    from planning.dry_run import Verdict

_DEFAULTS = (
    "bert_large_128_pod16 bert_large_512_pod16 groupbert_base_128_pod16 groupbert_base_512_pod16 "
    "bert_base_128_pod16 bert_base_512_pod16"
).split()
_MEASURED_CALLS = 5
# Evaluation interval with --target-loss for a recipe without eval_steps.
_EVALUATIONS = 20

# "Halves the parameters and reduces training time by 50% at the same accuracy": to BERT Large.
_ARTICLE = (
    "Published (Graphcore's GroupBERT article, January 2022): half the training time of BERT Large at equal "
    "accuracy. Compare GroupBERT Base with BERT Large, whose loss its authors compare it to."
)


@dataclass(frozen=True)
class Phase:
    """One recipe of a sequence of recipes that are trained one after the other."""

    name: str
    config: Config
    number: int
    line: str

    @property
    def global_batch(self) -> int:
        return self.config.sequences_per_step


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configs", nargs="+", default=None, metavar="NAME", help=f"recipes [{' '.join(_DEFAULTS)}]"
    )
    parser.add_argument(
        "--recipes", type=Path, default=configuration.CONFIGS, metavar="FILE", help="file of recipes"
    )
    parser.add_argument("--device", default="auto", help="auto, ipu or simulator [auto]")
    parser.add_argument(
        "--target-loss", type=float, help="train until the held-out masked-LM loss (nats) is this low"
    )
    parser.add_argument("--runs", type=Path, help="folder for trainings [OUTPUT/runs]")
    parser.add_argument("--cache-folder", help="folder for prepared data [the recipe's]")


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    return _whole(flags, output, budget) if flags.target_loss is None else _to_target(flags, output, budget)


def _whole(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    """Whole recipes over equal numbers of sequences."""
    phases = lines_of(flags.configs or _DEFAULTS, flags.recipes)
    device = ipu.select_device(flags.device)
    print(device.banner(), flush=True)
    if device.name == "ipu-model":
        raise ConfigError("device ipu-model: Poplar's IPU model doesn't predict time; use ipu or simulator")
    origin = "measured" if device.name == "ipu" else "predicted"
    rows, missing = _phase_rows(phases, device, budget)
    result = Result(
        "time-to-train",
        "Time to train over equal numbers of sequences",
        _time_columns(origin),
        rows,
        [
            "Equal sequences: those of the first line's recipe of the same phase. Compilation, evaluation "
            "and checkpoints are not included.",
            _ARTICLE,
            *missing_note(missing),
        ],
        extra={"device": device.name, "step_time": origin},
    )
    publish(result, output, lambda figure: _draw_hours(figure, rows, origin))
    return result


def _time_columns(origin: str) -> Sequence[Column]:
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
    """Groups recipes that differ only in sequence length into phases, shorter first.

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


def _phase_rows(
    phases: Sequence[Phase], device: ipu.DeviceChoice, budget: Budget
) -> Tuple[List[Dict[str, Any]], List[str]]:
    """A row per phase, a total per line of several phases, and the names that the budget left out."""
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
            parts.append(_phase_row(phase, reference[phase.number], device))
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


def _phase_row(phase: Phase, sequences: int, device: ipu.DeviceChoice) -> Dict[str, Any]:
    config = phase.config
    steps = -(-sequences // phase.global_batch)
    if device.name == "ipu":
        calls = timed_steps(config, device, "generated", 1 + _MEASURED_CALLS)[1:]
        step_s = statistics.median(call.total_s for call in calls) / config.device_iterations
        fits = True
    else:
        verdict = _verdict(config, phase.name)
        step_s, fits = verdict.step_s, verdict.fits
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


def _verdict(config: Config, name: str) -> Verdict:
    from planning import dry_run  # needs the simulator, and so a newer Python than an IPU host has

    return dry_run.verdict_of(config, name)


def _draw_hours(figure: Any, rows: Sequence[Dict[str, Any]], origin: str) -> None:
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


_TARGET_COLUMNS = (
    Column("name", "recipe"),
    Column("target_loss", "target/nats", "given", "{:.3f}"),
    Column("loss", "reached/nats", "measured", "{:.4f}"),
    Column("steps", "updates", "measured", "{:,}"),
    Column("samples", "sequences", "derived", "{:,}"),
    Column("flops", "FLOPs", "derived", "{:.3g}"),
    Column("host_s", "host s", "measured", "{:.1f}"),
    Column("step_s", "device s/update", "predicted", "{:.4f}"),
    Column("device_s", "device s", "predicted", "{:.2f}"),
)


def _to_target(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    """Trainings until the held-out masked-LM loss reaches --target-loss."""
    if not flags.configs:
        raise ConfigError("--target-loss trains for real: name the recipes to train with --configs")
    recipes = [(name, _target_config(name, flags)) for name in flags.configs]
    for _, config in recipes:
        command_line.choose_device(config)
    rows: List[Dict[str, Any]] = []
    missing: List[str] = []
    curves: List[Tuple[str, Trained]] = []
    for name, config in recipes:
        result = trained(
            config, name, runs=flags.runs or output / "runs", budget=budget, target_loss=flags.target_loss
        )
        if result is None:
            missing.append(name)
            continue
        curves.append((name, result))
        rows.append(_target_row(name, result, flags.target_loss))
    every = {config.eval_steps for _, config in recipes}
    published = Result(
        "time-to-target",
        f"Training until the held-out masked-LM loss is {flags.target_loss} nats",
        _TARGET_COLUMNS,
        rows,
        [
            f"Evaluated every {' or '.join(sorted(str(steps) for steps in every))} updates: a target is "
            "reached at the first evaluation at or below it. A recipe without updates in its row never "
            "reached it, and shows its last loss.",
            "host s: updates only, on this host. device s: updates times the step time that the cost model "
            "predicts for the recipe's target; FLOPs: forward and backward.",
            *missing_note(missing),
        ],
    )
    publish(published, output, lambda figure: _draw_curves(figure, curves, flags.target_loss))
    return published


def _target_config(name: str, flags: argparse.Namespace) -> Config:
    overrides: Dict[str, object] = {"device": flags.device}
    if flags.cache_folder is not None:
        overrides["cache_folder"] = flags.cache_folder
    config = configuration.load(name, path=flags.recipes, overrides=overrides)
    # By its name, under which trainings are stored.
    overrides["device"] = command_line.choose_device(config).name
    if config.eval_steps is None:
        overrides["eval_steps"] = max(config.training_steps // _EVALUATIONS, 1)
    return configuration.load(name, path=flags.recipes, overrides=overrides)


def first_at(result: Trained, target_loss: float) -> Optional[Dict[str, float]]:
    """The first evaluation at or below the target."""
    return next((found for found in result.evaluations if found["eval_mlm_loss"] <= target_loss), None)


def _target_row(name: str, result: Trained, target_loss: float) -> Dict[str, Any]:
    found = first_at(result, target_loss)
    row: Dict[str, Any] = {"name": name, "target_loss": target_loss, "step_s": None}
    if result.config.device == "simulator":  # other devices have no prediction
        row["step_s"] = _verdict(result.config, name).step_s
    if found is None:
        return {**row, "loss": None if result.has_diverged else result.validation_loss}
    steps = int(found["step"])
    return {
        **row,
        "loss": found["eval_mlm_loss"],
        "steps": steps,
        "samples": steps * result.samples_per_update,
        "flops": float(steps * result.flops_per_update),
        "host_s": result.host_s(steps),
        "device_s": None if row["step_s"] is None else steps * row["step_s"],
    }


def _draw_curves(figure: Any, curves: Sequence[Tuple[str, Trained]], target_loss: float) -> None:
    axes = figure.subplots()
    for name, result in curves:
        evaluations = [found for found in result.evaluations if found["step"] > 0]
        axes.plot(
            [found["step"] * result.flops_per_update for found in evaluations],
            [found["eval_mlm_loss"] for found in evaluations],
            "o-",
            label=name,
        )
    axes.axhline(target_loss, color="k", ls="--", lw=1, label="target")
    axes.set(
        xlabel="training FLOPs (derived)",
        ylabel="held-out masked-LM loss, nats (measured)",
        title="Training to a target loss",
    )
    axes.grid(alpha=0.3)
    axes.legend()
