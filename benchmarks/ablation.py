"""From BERT to GroupBERT, an enhancement at a time: held-out loss against FLOPs, equal tokens (Figure 5)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import studies
from .results import Column, Result, missing_note, publish
from .studies import (
    Measured,
    Spot,
    add_flags,
    base_of,
    between,
    entropy_note,
    measure,
    paired_difference,
    size_name,
    sizes_of,
)
from .trainings import Budget

__all__ = ["add_flags", "run"]

# The BERT sizes of the line that enhancements are compared with: factors of (hidden size, layers). The
# article's line goes through Medium, Base and Large.
_SIZES = ((0.5, 1.0), (1.0, 1.0), (1.0, 2.0))

# Of any spot's row, what `describe` and the line give.
COLUMNS = (
    Column("name", "model"),
    Column("size", "layers x hidden"),
    Column("learning_rate", "peak lr", "given", "{:.2g}"),
    Column("seeds", "seeds", "measured"),
    Column("parameters", "parameters", "derived", "{:,}"),
    Column("flops", "training FLOPs", "derived", "{:.3g}"),
    Column("loss", "held-out loss/nats", "measured", "{:.4f}"),
    Column("loss_half_width", "+-95%", "derived", "{:.4f}"),
    Column("against_line", "vs BERT line", "derived", "{:+.4f}"),
    Column("host_s", "host s", "measured", "{:.0f}"),
)
_GAINS = (
    Column("step_gain", "vs row above", "derived", "{:+.4f}"),
    Column("step_gain_half_width", "+-95%", "derived", "{:.4f}"),
)


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    base = base_of(flags)
    same = (base.hidden_size, base.num_layers)
    walk = [Spot(point.name, point, same) for point in studies.ablation()]
    sizes = [size for size in sizes_of(base, _SIZES) if size != same]
    line = [Spot(f"BERT {size_name(size)}", studies.bert(), size) for size in sizes]
    measured, missing = measure(
        [*walk, *line], base, seeds=flags.seeds, runs=flags.runs or output / "runs", budget=budget
    )
    on_walk, on_line = measured[: len(walk)], [measured[0], *measured[len(walk) :]]
    bert_line = line_of(on_line)
    rows = [_row(one, before, bert_line) for one, before in zip(on_walk, [None, *on_walk])]
    rows += [_row(one, None, []) for one in on_line[1:]]
    result = Result(
        "ablation",
        f"From BERT to GroupBERT at equal tokens: {base.corpus}, {base.training_steps:,} updates of "
        f"{base.micro_batch_size * base.gradient_accumulation} sequences of {base.sequence_length} tokens",
        (*COLUMNS[:-2], *_GAINS, *COLUMNS[-2:]),
        rows,
        [*NOTES, *entropy_note(measured), *missing_note(missing)],
    )
    publish(result, output, lambda figure: _draw(figure, on_walk, on_line))
    return result


NOTES = (
    "Loss: masked-LM on held-out text after the last update, mean over seeds; +-95% is Student's t.",
    "vs row above: paired by seed (same data, masks and order); negative is better. vs BERT line: loss less "
    "that of a BERT of equal FLOPs, straight in log FLOPs between the measured BERT sizes.",
)


def line_of(measured: Sequence[Measured]) -> List[Tuple[float, float]]:
    """(FLOPs, mean loss) of what has been measured."""
    line = []
    for one in measured:
        loss, _ = one.mean()
        if one.example is not None and loss is not None:
            line.append((one.example.flops, loss))
    return line


def describe(one: Measured) -> Dict[str, Any]:
    """What a table says of any spot; a spot without a training has its names only."""
    example = one.example
    row: Dict[str, Any] = {"name": one.spot.label, "size": size_name(one.spot.size)}
    if example is None:
        return row
    loss, half_width = one.mean()
    return {
        **row,
        "learning_rate": example.config.learning_rate,
        "seeds": len(one.by_seed),
        "diverged": one.diverged,
        "parameters": parameters_of(one),
        "flops": example.flops,
        "loss": loss,
        "loss_half_width": half_width,
        "losses": {str(seed): value for seed, value in one.losses.items()},
        "host_s": sum(training.host_s() for training in one.by_seed.values()) / len(one.by_seed),
    }


def parameters_of(one: Measured) -> Optional[int]:
    import torch

    import model as models

    if one.example is None:
        return None
    with torch.device("meta"):
        return models.count_parameters(models.PretrainingModel(one.example.config.model_config()))


def _row(one: Measured, before: Optional[Measured], bert_line: List[Tuple[float, float]]) -> Dict[str, Any]:
    row = describe(one)
    if before is not None:
        row["step_gain"], row["step_gain_half_width"] = paired_difference(one, before)
    expected = between(row["flops"], bert_line) if row.get("loss") is not None else None
    if expected is not None:
        row["against_line"] = row["loss"] - expected
    return row


def _draw(figure: Any, on_walk: Sequence[Measured], on_line: Sequence[Measured]) -> None:
    axes = figure.subplots()
    line = sorted(line_of(on_line))
    axes.plot([flops for flops, _ in line], [loss for _, loss in line], "k--", lw=1, label="BERT sizes")
    for one in [*on_line[1:], *on_walk]:
        draw_spot(axes, one)
    decorate(axes, "From BERT to GroupBERT, equal tokens")


def draw_spot(axes: Any, one: Measured, *, label: Optional[str] = None, **style: Any) -> None:
    """A dot with its 95% interval; nothing where nothing was measured."""
    loss, half_width = one.mean()
    if one.example is None or loss is None:
        return
    axes.errorbar(
        one.example.flops,
        loss,
        yerr=half_width or 0.0,
        fmt=style.pop("fmt", "o"),
        capsize=3,
        label=one.spot.label if label is None else label,
        **style,
    )


def decorate(axes: Any, title: str) -> None:
    axes.set(
        xscale="log",
        xlabel="training FLOPs (derived)",
        ylabel="held-out masked-LM loss, nats (measured)",
        title=title,
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
