"""Attention probability by relative position, for checkpoints (Figure 3)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

import data
import model as models
import training
from config import Config
from training.checkpoints import read_checkpoint

from . import positive
from .results import Column, Result, missing_note, publish
from .trainings import Budget

_BATCH = 16

_COLUMNS = (
    Column("name", "checkpoint"),
    Column("layer", "layer", "given"),
    Column("distance", "mean distance/tokens", "measured", "{:.2f}"),
    Column("uniform_distance", "if uniform", "derived", "{:.2f}"),
    Column("itself", "on itself", "measured", "{:.1%}"),
    Column("within_1", "within 1", "measured", "{:.1%}"),
    Column("within_3", "within 3", "measured", "{:.1%}"),
    Column("within_8", "within 8", "measured", "{:.1%}"),
    Column("uniform_within_3", "within 3 if uniform", "derived", "{:.1%}"),
)


@dataclass(frozen=True)
class Attended:
    """One layer: probability by (head, offset), offsets from -reach to reach; and columns of the table.

    The probability at an offset is the mean over real tokens that have a real token at that offset.
    """

    by_offset_ho: Tensor
    row: Dict[str, float]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        required=True,
        metavar="[NAME=]FOLDER",
        help="runs or checkpoints of this program, for example BERT=output/bert GroupBERT=output/groupbert",
    )
    parser.add_argument("--sequences", type=positive, default=64, help="number of held-out sequences [64]")
    parser.add_argument(
        "--reach", type=positive, default=16, help="largest distance in the picture, tokens [16]"
    )


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    rows: List[Dict[str, Any]] = []
    curves: Dict[str, List[Attended]] = {}
    missing: List[str] = []
    for word in flags.checkpoints:
        name, folder = _named(word)
        if budget.is_spent:
            missing.append(name)
            continue
        model, config = _load(folder)
        batches = _held_out(config, flags.sequences)
        curves[name] = attended(model, batches, flags.reach)
        rows += [{"name": name, "layer": number, **one.row} for number, one in enumerate(curves[name], 1)]
    extra = {
        "offsets": list(range(-flags.reach, flags.reach + 1)),
        "probability_by_head": {
            name: [one.by_offset_ho.tolist() for one in layers] for name, layers in curves.items()
        },
    }
    result = Result(
        "attention",
        "Attention by relative position, on held-out text",
        _COLUMNS,
        rows,
        [
            f"Means over heads and the real tokens of {flags.sequences} sequences, including special tokens. "
            "Distance: between the attended and the attending token. Uniform: with equal attention to every "
            "real token.",
            *missing_note(missing),
        ],
        extra=extra,
    )
    publish(result, output, lambda figure: _draw(figure, curves, flags.reach))
    return result


def _named(word: str) -> Tuple[str, Path]:
    name, equals, folder = word.partition("=")
    return (name, Path(folder)) if equals else (Path(word).name, Path(word))


def _load(folder: Path) -> Tuple[models.PretrainingModel, Config]:
    """The newest valid checkpoint's model, and the configuration of its training."""
    weights = training.resolve_weights_folder(folder)
    config = Config(**read_checkpoint(weights).state["config"])
    model = models.from_pretrained(weights)
    assert isinstance(model, models.PretrainingModel)
    return model.eval(), config


def _held_out(config: Config, sequences: int) -> List[data.Batch]:
    prepared = data.prepare_pretraining_data(
        config.section(data.PretrainingDataOptions), cache_folder=Path(config.cache_folder), progress=False
    )
    if prepared.validation is None:
        raise data.DataError("nothing was held out of this checkpoint's corpus: there is no text to evaluate")
    data.require_examples(prepared.validation, sequences, f"--sequences {sequences}")
    return [
        data.collate(prepared.validation.__getitems__(list(range(first, min(first + _BATCH, sequences)))))
        for first in range(0, sequences, _BATCH)
    ]


def attended(model: models.PretrainingModel, batches: Sequence[data.Batch], reach: int) -> List[Attended]:
    """Attention of each layer, over all `batches` (see data.BATCH_FIELDS)."""
    encoder_layers: Any = model.encoder.layers
    layers = [layer.attention.body for layer in encoder_layers]
    sums = [_Sums(model.config.num_heads, reach) for _ in layers]
    seen: Dict[int, Tensor] = {}
    hooks = [
        layer.dropout.register_forward_pre_hook(
            lambda _module, inputs, number=number: seen.__setitem__(number, inputs[0])
        )
        for number, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model.encoder(*batch[:3])
                for number, gathered in enumerate(sums):
                    gathered.add(seen[number], batch[1])
    finally:
        for hook in hooks:
            hook.remove()
    return [gathered.result() for gathered in sums]


class _Sums:
    """Sums over pairs of real tokens. Letters: B sequences, H heads, Q attending, K attended tokens."""

    def __init__(self, heads: int, reach: int) -> None:
        self._reach = reach
        self._by_offset = [torch.zeros(heads, dtype=torch.float64) for _ in range(2 * reach + 1)]
        self._pairs = [0.0] * (2 * reach + 1)
        self._row: Dict[str, float] = {}
        self._tokens = 0.0

    def add(self, probabilities_bhqk: Tensor, attention_mask_bs: Tensor) -> None:
        probabilities = probabilities_bhqk.double()
        real = attention_mask_bs.double()
        pairs_bqk = real[:, :, None] * real[:, None, :]
        tokens = real.shape[1]
        places = torch.arange(tokens)
        offset_qk = places[None, :] - places[:, None]
        seen = probabilities * pairs_bqk[:, None]
        for index in range(2 * self._reach + 1):
            offset = index - self._reach
            if abs(offset) < tokens:
                self._by_offset[index] += seen.diagonal(offset, 2, 3).sum((0, 2))
                self._pairs[index] += float(pairs_bqk.diagonal(offset, 1, 2).sum())
        mean_bqk = seen.mean(1)
        uniform_bqk = pairs_bqk / real.sum(1)[:, None, None]
        distance_qk = offset_qk.abs().double()
        for name, weights_bqk in (("", mean_bqk), ("uniform_", uniform_bqk)):
            self._count(f"{name}distance", weights_bqk * distance_qk)
            self._count(f"{name}itself", weights_bqk * (distance_qk == 0))
            for span in (1, 3, 8):
                self._count(f"{name}within_{span}", weights_bqk * (distance_qk <= span))
        self._tokens += float(real.sum())

    def _count(self, name: str, values: Tensor) -> None:
        self._row[name] = self._row.get(name, 0.0) + float(values.sum())

    def result(self) -> Attended:
        by_offset = [total / max(pairs, 1.0) for total, pairs in zip(self._by_offset, self._pairs)]
        row = {name: value / self._tokens for name, value in self._row.items()}
        return Attended(torch.stack(by_offset, dim=1), row)


def _draw(figure: Any, curves: Dict[str, List[Attended]], reach: int) -> None:
    deepest = max((len(layers) for layers in curves.values()), default=1)
    panels = figure.subplots(max(len(curves), 1), deepest, squeeze=False, sharex=True, sharey=True)
    offsets = list(range(-reach, reach + 1))
    for line, (name, layers) in zip(panels, curves.items()):
        for number, (axes, one) in enumerate(zip(line, layers), 1):
            for head in one.by_offset_ho:
                axes.plot(offsets, head.tolist(), lw=0.8, alpha=0.6)
            axes.plot(offsets, one.by_offset_ho.mean(0).tolist(), "k", lw=1.8)
            axes.set_title(f"{name}, layer {number}", fontsize=9)
            axes.grid(alpha=0.3)
        line[0].set_ylabel("probability")
    for axes in panels[-1]:
        axes.set_xlabel("relative position, tokens")
    figure.suptitle("Attention by relative position (measured; thin: heads, black: their mean)")
