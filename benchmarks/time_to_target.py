"""Trains recipes until their held-out masked-LM loss reaches a target: updates, samples, FLOPs, time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import command_line
import config as configuration
from config import Config, ConfigError

from .results import Column, Result, missing_note, publish
from .trainings import Budget, Trained, trained

# A recipe without evaluations of its own is evaluated so often.
_EVALUATIONS = 20

_COLUMNS = (
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


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target-loss", type=float, help="train until the held-out masked-LM loss (nats) is this low"
    )
    parser.add_argument("--runs", type=Path, help="where trainings are kept [OUTPUT/runs]")
    parser.add_argument("--cache-folder", help="where prepared data is kept [the recipe's]")


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    if not flags.configs:
        raise ConfigError("--target-loss trains for real: name the recipes to train with --configs")
    recipes = [(name, _config(name, flags)) for name in flags.configs]
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
        rows.append(_row(name, result, flags.target_loss))
    every = {config.eval_steps for _, config in recipes}
    published = Result(
        "time-to-target",
        f"Training until the held-out masked-LM loss is {flags.target_loss} nats",
        _COLUMNS,
        rows,
        [
            f"Evaluated every {' or '.join(sorted(str(steps) for steps in every))} updates: a target is "
            "reached at the first evaluation at or below it. A recipe without updates in its row never did, "
            "and shows its last loss.",
            "host s: updates alone on this host. device s: updates times the step time that the cost model "
            "predicts for the recipe's target; FLOPs: forward and backward.",
            *missing_note(missing),
        ],
    )
    publish(published, output, lambda figure: _draw(figure, curves, flags.target_loss))
    return published


def _config(name: str, flags: argparse.Namespace) -> Config:
    overrides: Dict[str, object] = {"device": flags.device}
    if flags.cache_folder is not None:
        overrides["cache_folder"] = flags.cache_folder
    config = configuration.load(name, path=flags.recipes, overrides=overrides)
    # By its own name, under which trainings are kept.
    overrides["device"] = command_line.choose_device(config).name
    if config.eval_steps is None:
        overrides["eval_steps"] = max(config.training_steps // _EVALUATIONS, 1)
    return configuration.load(name, path=flags.recipes, overrides=overrides)


def first_at(result: Trained, target_loss: float) -> Optional[Dict[str, float]]:
    """The first evaluation at or below the target."""
    return next((found for found in result.evaluations if found["eval_mlm_loss"] <= target_loss), None)


def _row(name: str, result: Trained, target_loss: float) -> Dict[str, Any]:
    found = first_at(result, target_loss)
    row: Dict[str, Any] = {"name": name, "target_loss": target_loss, "step_s": _step_s(result.config, name)}
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


def _step_s(config: Config, name: str) -> Optional[float]:
    """Predicted; None beside another device than the simulator, where no prediction can be made."""
    from .time_to_train import predicted_step_s

    return predicted_step_s(config, name)[0] if config.device == "simulator" else None


def _draw(figure: Any, curves: Sequence[Tuple[str, Trained]], target_loss: float) -> None:
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
