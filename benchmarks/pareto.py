"""BERT and GroupBERT at several sizes: held-out loss against FLOPs at equal tokens (Figure 6)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Sequence

from . import studies
from .ablation import COLUMNS, NOTES, decorate, describe, draw_spot, line_of
from .results import Result, missing_note, publish
from .studies import Measured, Spot, add_flags, base_of, between, entropy_note, measure, size_name, sizes_of
from .trainings import Budget

__all__ = ["add_flags", "run"]

# Factors of the base's (hidden size, layers). Each GroupBERT has about 1.6 times a BERT's FLOPs of its size.
_BERT_SIZES = ((0.5, 1.0), (1.0, 1.0), (1.0, 2.0))
_GROUPBERT_SIZES = ((0.5, 1.0), (1.0, 1.0))


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    base = base_of(flags)
    families = (
        ("BERT", studies.bert(), sizes_of(base, _BERT_SIZES)),
        ("GroupBERT", studies.groupbert(), sizes_of(base, _GROUPBERT_SIZES)),
    )
    spots = [
        Spot(f"{family} {size_name(size)}", point, size)
        for family, point, sizes in families
        for size in sizes
    ]
    measured, missing = measure(
        spots, base, seeds=flags.seeds, runs=flags.runs or output / "runs", budget=budget
    )
    berts = [one for one in measured if not one.spot.label.startswith("Group")]
    groupberts = [one for one in measured if one.spot.label.startswith("Group")]
    bert_line = line_of(berts)
    rows: List[Dict[str, Any]] = []
    for one in measured:
        row = describe(one)
        if one in groupberts and row.get("loss") is not None:
            expected = between(row["flops"], bert_line)
            row["against_line"] = None if expected is None else row["loss"] - expected
        rows.append(row)
    result = Result(
        "pareto",
        f"Held-out loss against FLOPs at equal tokens: {base.corpus}",
        COLUMNS,
        rows,
        [
            *NOTES,
            *entropy_note(measured),
            *missing_note(missing),
        ],
    )
    publish(result, output, lambda figure: _draw(figure, berts, groupberts))
    return result


def _draw(figure: Any, berts: Sequence[Measured], groupberts: Sequence[Measured]) -> None:
    axes = figure.subplots()
    for family, colour in ((berts, "tab:blue"), (groupberts, "tab:orange")):
        line = sorted(line_of(family))
        axes.plot([flops for flops, _ in line], [loss for _, loss in line], "-", color=colour, lw=1)
        for one in family:
            draw_spot(axes, one, color=colour)
    decorate(axes, "BERT and GroupBERT, equal tokens")
