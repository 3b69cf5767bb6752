"""The studies: held-out loss of models trained on equal tokens, each over several seeds.

`ablation` goes from BERT to GroupBERT (Figure 5), `pareto` compares their sizes (Figure 6), `learning-rate`
finds the learning rates that PreNorm and PostNorm tolerate. They share flags, trainings and most columns;
each defines its models, its table's columns and its picture.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import command_line
import config as configuration
import model as models
from config import Config

from . import points, positive
from .points import SCALES, Point, Size, size_name, sizes_of
from .results import Column, Result, Row, mean_and_half_width, missing_note, publish
from .trainings import Budget, Trained, trained


@dataclass(frozen=True)
class Spot:
    """A point at a size, trained with all seeds.

    `label` names it for people; a study draws and compares the spots of one `family` together.
    """

    label: str
    point: Point
    size: Size
    family: str = ""


@dataclass(frozen=True)
class MeasuredSpot:
    """A spot's trainings, one per seed; seeds that the budget left out are missing."""

    spot: Spot
    by_seed: Mapping[int, Trained]

    @property
    def losses(self) -> Dict[int, float]:
        """Held-out masked-LM loss (nats) by seed, without those that diverged."""
        losses = {seed: one.validation_loss for seed, one in self.by_seed.items()}
        return {seed: loss for seed, loss in losses.items() if not math.isnan(loss)}

    @property
    def diverged(self) -> int:
        return sum(one.has_diverged for one in self.by_seed.values())

    @property
    def example(self) -> Optional[Trained]:
        """One of the trainings, for sizes and FLOPs, which are the same in all."""
        return next(iter(self.by_seed.values()), None)

    def mean(self) -> Tuple[Optional[float], Optional[float]]:
        """The mean loss over seeds and half of its 95% confidence interval; None without trainings."""
        return _mean_or_none(list(self.losses.values()))

    def row(self) -> Dict[str, Any]:
        """The common columns of a row; a spot without a training has only its names."""
        example = self.example
        row: Dict[str, Any] = {"name": self.spot.label, "size": size_name(self.spot.size)}
        if example is None:
            return row
        loss, half_width = self.mean()
        with models.without_weights():
            parameters = models.count_parameters(models.PretrainingModel(example.config.model_config()))
        return {
            **row,
            "learning_rate": example.config.learning_rate,
            "seeds": len(self.by_seed),
            "diverged": self.diverged,
            "parameters": parameters,
            "flops": example.flops,
            "loss": loss,
            "loss_half_width": half_width,
            "losses": {str(seed): value for seed, value in self.losses.items()},
            "host_s": sum(training.host_s() for training in self.by_seed.values()) / len(self.by_seed),
        }


@dataclass(frozen=True)
class Study:
    """A subcommand. All its functions take the measured spots in the order of `spots`."""

    name: str
    title: Callable[[Config], str]
    columns: Sequence[Column]
    notes: Sequence[str]
    spots: Callable[[Config], List[Spot]]
    rows: Callable[[Sequence[MeasuredSpot]], List[Row]]
    draw: Callable[[Any, Sequence[MeasuredSpot]], None]

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The configuration's keys are flags too."""
        parser.add_argument("--scale", default="demo", help="a recipe of --scales: demo or study [demo]")
        parser.add_argument(
            "--scales", type=Path, default=SCALES, help="a file of recipes [benchmarks/studies.yml]"
        )
        parser.add_argument("--seeds", type=positive, default=2, help="trainings of each point [2]")
        parser.add_argument("--runs", type=Path, help="folder for trainings [OUTPUT/runs]")
        configuration.add_flags(parser)

    def run(self, flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
        base = _base_of(flags)
        measured, missing = _measure(
            self.spots(base), base, seeds=flags.seeds, runs=flags.runs or output / "runs", budget=budget
        )
        notes = [*self.notes, *_entropy_note(measured), *missing_note(missing)]
        result = Result(self.name, self.title(base), self.columns, self.rows(measured), notes)
        publish(result, output, lambda figure: self.draw(figure.subplots(), measured))
        return result


def _base_of(flags: argparse.Namespace) -> Config:
    """The study's recipe with the command line's overrides. Raises ConfigError."""
    overrides = configuration.overrides_from(flags)
    base = configuration.load(flags.scale, path=flags.scales, overrides=overrides)
    device = command_line.choose_device(base)
    # Trainings are stored by the name of the device that they ran on, not by "auto".
    return configuration.load(flags.scale, path=flags.scales, overrides={**overrides, "device": device.name})


def _measure(
    spots: Sequence[Spot], base: Config, *, seeds: int, runs: Path, budget: Budget
) -> Tuple[List[MeasuredSpot], List[str]]:
    """Trains every spot with every seed: first all spots with the first seed, and so on.

    Returns the measured spots in the order of `spots`, and the names of the trainings that the budget left
    out. Seeds also determine data order, masks and sentence pairs, identically for every spot, so losses of
    two spots can be compared seed by seed.
    """
    by_seed: List[Dict[int, Trained]] = [{} for _ in spots]
    missing = []
    for seed in range(base.seed, base.seed + seeds):
        for spot, found in zip(spots, by_seed):
            config = spot.point.config(base, seed=seed, size=spot.size)
            result = trained(config, spot.label, runs=runs, budget=budget)
            if result is None:
                missing.append(f"{spot.label} seed {seed}")
            else:
                found[seed] = result
    return [MeasuredSpot(spot, found) for spot, found in zip(spots, by_seed)], missing


def _entropy_note(measured: Sequence[MeasuredSpot]) -> List[str]:
    """The loss of the best model that ignores context, as a reference for the losses."""
    entropies = [one.unigram_entropy_nats for each in measured for one in each.by_seed.values()]
    known = [entropy for entropy in entropies if not math.isnan(entropy)]
    if not known:
        return []
    return [f"Unigram entropy of the held-out text (measured): {min(known):.4f} nats."]


def _mean_or_none(samples: Sequence[float]) -> Tuple[Optional[float], Optional[float]]:
    if not samples:
        return None, None
    mean, half_width = mean_and_half_width(samples)
    return mean, None if math.isnan(half_width) else half_width


def paired_difference(of: MeasuredSpot, to: MeasuredSpot) -> Tuple[Optional[float], Optional[float]]:
    """Mean difference in loss over their common seeds, and half of its 95% interval."""
    common = sorted(set(of.losses) & set(to.losses))
    return _mean_or_none([of.losses[seed] - to.losses[seed] for seed in common])


def between(flops: float, line: Sequence[Tuple[float, float]]) -> Optional[float]:
    """The loss at `flops` on a line through points of (FLOPs, loss), interpolated linearly in log FLOPs; None
    outside their range."""
    ordered = sorted(line)
    for (low, low_loss), (high, high_loss) in zip(ordered, ordered[1:]):
        if low <= flops <= high:
            share = (math.log(flops) - math.log(low)) / (math.log(high) - math.log(low))
            return low_loss + share * (high_loss - low_loss)
    return None


def _against(row: Row, line: Sequence[Tuple[float, float]]) -> Optional[float]:
    """The row's loss minus the line's at its FLOPs; None if either is unknown."""
    expected = between(row["flops"], line) if row.get("loss") is not None else None
    return None if expected is None else row["loss"] - expected


def _line_of(measured: Sequence[MeasuredSpot]) -> List[Tuple[float, float]]:
    """(FLOPs, mean loss) of the measured spots, by FLOPs."""
    means = [(one.example, one.mean()[0]) for one in measured]
    return sorted(
        (example.flops, loss) for example, loss in means if example is not None and loss is not None
    )


def _of(family: str, measured: Sequence[MeasuredSpot]) -> List[MeasuredSpot]:
    return [one for one in measured if one.spot.family == family]


def _draw_spot(axes: Any, one: MeasuredSpot, **style: Any) -> None:
    """A dot with its 95% interval; nothing for a spot without trainings."""
    loss, half_width = one.mean()
    if one.example is not None and loss is not None:
        axes.errorbar(
            one.example.flops, loss, half_width or 0.0, fmt="o", capsize=3, label=one.spot.label, **style
        )


def _draw_line(axes: Any, measured: Sequence[MeasuredSpot], style: str, **more: Any) -> None:
    line = _line_of(measured)
    axes.plot([flops for flops, _ in line], [loss for _, loss in line], style, lw=1, **more)


def _decorate(axes: Any, title: str) -> None:
    axes.set(xscale="log", xlabel="training FLOPs (derived)", ylabel=_LOSS_AXIS, title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


_LOSS_AXIS = "held-out masked-LM loss, nats (measured)"
_LEARNING_RATE_COLUMN = Column("learning_rate", "peak lr", "given", "{:.2g}")
_SEEDS_COLUMN = Column("seeds", "seeds", "measured")
_LOSS_COLUMNS = (
    Column("loss", "held-out loss/nats", "measured", "{:.4f}"),
    Column("loss_half_width", "+-95%", "derived", "{:.4f}"),
)
_LINE_COLUMN = Column("against_line", "vs BERT line", "derived", "{:+.4f}")
_HOST_COLUMN = Column("host_s", "host s", "measured", "{:.0f}")
_MODEL_COLUMNS = (
    Column("name", "model"),
    Column("size", "layers x hidden"),
    _LEARNING_RATE_COLUMN,
    _SEEDS_COLUMN,
    Column("parameters", "parameters", "derived", "{:,}"),
    Column("flops", "training FLOPs", "derived", "{:.3g}"),
    *_LOSS_COLUMNS,
)
_NOTES = (
    "Loss: masked-LM on held-out text after the last update, mean over seeds; +-95% is Student's t.",
    "vs row above: paired by seed (same data, masks and order); negative is better. vs BERT line: loss less "
    "that of a BERT of equal FLOPs, straight in log FLOPs between the measured BERT sizes.",
)
# Factors of the base's (hidden size, layers). The article's BERTs are Medium, Base and Large; each GroupBERT
# has about 1.6 times the FLOPs of a BERT of its size.
_BERT_SIZES = ((0.5, 1.0), (1.0, 1.0), (1.0, 2.0))
_GROUPBERT_SIZES = ((0.5, 1.0), (1.0, 1.0))


def _ablation_spots(base: Config) -> List[Spot]:
    same = (base.hidden_size, base.num_layers)
    walk = [Spot(point.name, point, same, "walk") for point in points.ablation()]
    sizes = [size for size in sizes_of(base, _BERT_SIZES) if size != same]
    return walk + [Spot(f"BERT {size_name(size)}", points.bert(), size, "line") for size in sizes]


def _ablation_rows(measured: Sequence[MeasuredSpot]) -> List[Row]:
    walk, others = _of("walk", measured), _of("line", measured)
    line = _line_of([walk[0], *others])
    rows: List[Row] = []
    for one, before in zip(walk, [None, *walk]):
        row = one.row()
        if before is not None:
            row["step_gain"], row["step_gain_half_width"] = paired_difference(one, before)
        against = _against(row, line)
        rows.append(row if against is None else {**row, "against_line": against})
    return rows + [one.row() for one in others]


def _draw_ablation(axes: Any, measured: Sequence[MeasuredSpot]) -> None:
    walk, others = _of("walk", measured), _of("line", measured)
    _draw_line(axes, [walk[0], *others], "k--", label="BERT sizes")
    for one in [*others, *walk]:
        _draw_spot(axes, one)
    _decorate(axes, "From BERT to GroupBERT, equal tokens")


ABLATION = Study(
    "ablation",
    lambda base: (
        f"From BERT to GroupBERT at equal tokens: {base.corpus}, {base.training_steps:,} updates of "
        f"{base.micro_batch_size * base.gradient_accumulation} sequences of {base.sequence_length} tokens"
    ),
    (
        *_MODEL_COLUMNS,
        Column("step_gain", "vs row above", "derived", "{:+.4f}"),
        Column("step_gain_half_width", "+-95%", "derived", "{:.4f}"),
        _LINE_COLUMN,
        _HOST_COLUMN,
    ),
    _NOTES,
    _ablation_spots,
    _ablation_rows,
    _draw_ablation,
)


def _pareto_spots(base: Config) -> List[Spot]:
    families = (("BERT", points.bert(), _BERT_SIZES), ("GroupBERT", points.groupbert(), _GROUPBERT_SIZES))
    return [
        Spot(f"{family} {size_name(size)}", point, size, family)
        for family, point, factors in families
        for size in sizes_of(base, factors)
    ]


def _pareto_rows(measured: Sequence[MeasuredSpot]) -> List[Row]:
    line = _line_of(_of("BERT", measured))
    rows: List[Row] = [one.row() for one in _of("BERT", measured)]
    for one in _of("GroupBERT", measured):
        row = one.row()
        rows.append({**row, "against_line": _against(row, line)} if "loss" in row else row)
    return rows


def _draw_pareto(axes: Any, measured: Sequence[MeasuredSpot]) -> None:
    for family, colour in (("BERT", "tab:blue"), ("GroupBERT", "tab:orange")):
        _draw_line(axes, _of(family, measured), "-", color=colour)
        for one in _of(family, measured):
            _draw_spot(axes, one, color=colour)
    _decorate(axes, "BERT and GroupBERT, equal tokens")


PARETO = Study(
    "pareto",
    lambda base: f"Held-out loss against FLOPs at equal tokens: {base.corpus}",
    (*_MODEL_COLUMNS, _LINE_COLUMN, _HOST_COLUMN),
    _NOTES,
    _pareto_spots,
    _pareto_rows,
    _draw_pareto,
)


def _learning_rate_spots(base: Config) -> List[Spot]:
    size = (base.hidden_size, base.num_layers)
    return [
        Spot(f"{norm} {factor:g}x", make(learning_rate_factor=factor), size, norm)
        for factor in (1.0, 2.0, 4.0, 8.0)
        for norm, make in (("PostNorm", points.bert), ("PreNorm", points.pre_norm_bert))
    ]


def _learning_rate_rows(measured: Sequence[MeasuredSpot]) -> List[Row]:
    rows = [
        {**one.row(), "norm": one.spot.family, "factor": one.spot.point.learning_rate_factor}
        for one in measured
    ]
    return sorted(rows, key=lambda row: (row["norm"], row["factor"]))


def _draw_learning_rate(axes: Any, measured: Sequence[MeasuredSpot]) -> None:
    for norm in ("PostNorm", "PreNorm"):
        found = [(one.spot.point.learning_rate_factor, *one.mean()) for one in _of(norm, measured)]
        found = [entry for entry in found if entry[1] is not None]
        axes.errorbar(
            [factor for factor, _, _ in found],
            [loss for _, loss, _ in found],
            yerr=[half_width or 0.0 for _, _, half_width in found],
            fmt="o-",
            capsize=3,
            label=norm,
        )
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="multiple of the learning rate",
        ylabel=_LOSS_AXIS,
        title="Learning rates that PreNorm and PostNorm tolerate",
    )
    axes.grid(alpha=0.3)
    axes.legend()


LEARNING_RATE = Study(
    "learning-rate",
    lambda base: f"BERT with PostNorm and with PreNorm at multiples of the learning rate: {base.corpus}",
    (
        Column("norm", "norm"),
        Column("factor", "lr factor", "given", "{:g}x"),
        _LEARNING_RATE_COLUMN,
        _SEEDS_COLUMN,
        Column("diverged", "diverged", "measured"),
        *_LOSS_COLUMNS,
        _HOST_COLUMN,
    ),
    ["Loss: masked-LM on held-out text after the last update, mean over seeds that didn't diverge."],
    _learning_rate_spots,
    _learning_rate_rows,
    _draw_learning_rate,
)
