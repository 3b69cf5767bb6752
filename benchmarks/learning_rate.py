"""Which learning rate PreNorm and PostNorm tolerate: 1x, 2x, 4x and 8x of the study's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Sequence

from . import studies
from .ablation import describe
from .results import Column, Result, missing_note, publish
from .studies import Measured, Spot, add_flags, base_of, entropy_note, measure
from .trainings import Budget

__all__ = ["add_flags", "run"]

_FACTORS = (1.0, 2.0, 4.0, 8.0)

_COLUMNS = (
    Column("norm", "norm"),
    Column("factor", "lr factor", "given", "{:g}x"),
    Column("learning_rate", "peak lr", "given", "{:.2g}"),
    Column("seeds", "seeds", "measured"),
    Column("diverged", "diverged", "measured"),
    Column("loss", "held-out loss/nats", "measured", "{:.4f}"),
    Column("loss_half_width", "+-95%", "derived", "{:.4f}"),
    Column("host_s", "host s", "measured", "{:.0f}"),
)


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    base = base_of(flags)
    same = (base.hidden_size, base.num_layers)
    kinds = (("PostNorm", studies.bert), ("PreNorm", studies.pre_norm_bert))
    spots = [
        Spot(f"{norm} {factor:g}x", make(learning_rate_factor=factor), same)
        for factor in _FACTORS
        for norm, make in kinds
    ]
    measured, missing = measure(
        spots, base, seeds=flags.seeds, runs=flags.runs or output / "runs", budget=budget
    )
    rows: List[Dict[str, Any]] = []
    for one in measured:
        norm = one.spot.label.split()[0]
        rows.append({**describe(one), "norm": norm, "factor": one.spot.point.learning_rate_factor})
    rows.sort(key=lambda row: (row["norm"], row["factor"]))
    result = Result(
        "learning-rate",
        f"BERT with PostNorm and with PreNorm at multiples of the learning rate: {base.corpus}",
        _COLUMNS,
        rows,
        [
            "Loss: masked-LM on held-out text after the last update, mean over seeds that didn't diverge.",
            *entropy_note(measured),
            *missing_note(missing),
        ],
    )
    publish(result, output, lambda figure: _draw(figure, measured))
    return result


def _draw(figure: Any, measured: Sequence[Measured]) -> None:
    axes = figure.subplots()
    for norm in ("PostNorm", "PreNorm"):
        found = [(one, *one.mean()) for one in measured if one.spot.label.startswith(norm)]
        found = [entry for entry in found if entry[1] is not None]
        axes.errorbar(
            [one.spot.point.learning_rate_factor for one, _, _ in found],
            [loss for _, loss, _ in found],
            yerr=[half_width or 0.0 for _, _, half_width in found],
            fmt="o-",
            capsize=3,
            label=norm,
        )
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="multiple of the learning rate",
        ylabel="held-out masked-LM loss, nats (measured)",
        title="Learning rates that PreNorm and PostNorm bear",
    )
    axes.grid(alpha=0.3)
    axes.legend()
