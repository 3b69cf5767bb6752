"""What ablation, pareto and learning-rate share: their flags, and points trained over several seeds."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import command_line
import config as configuration
from config import Config

from .steps import mean_and_half_width
from .trainings import Budget, Trained, trained

# The points between BERT and GroupBERT that the article's figures compare.

# The article's GroupBERT tolerates four times the learning rate of a PostNorm BERT (published).
HIGHER_LEARNING_RATE = 4.0

_BERT: Mapping[str, Any] = {
    "norm": "post",
    "convolution": False,
    "feed_forward": "dense",
    "hidden_dropout": 0.1,
    "attention_dropout": 0.0,
}


@dataclass(frozen=True)
class Point:
    """A named model and its rules of training; `learning_rate_factor` multiplies the study's 1x."""

    name: str
    keys: Mapping[str, Any]
    learning_rate_factor: float = 1.0

    def config(self, base: Config, *, seed: int, size: Tuple[int, int] = (0, 0)) -> Config:
        """`base` with this point's keys; `size`, where given, is (hidden size, layers) in place of base's.

        Heads keep base's features per head. Raises ConfigError where a size allows no such model.
        """
        keys: Dict[str, Any] = {**self.keys, "model": base.model, "seed": seed}
        keys["learning_rate"] = base.learning_rate * self.learning_rate_factor
        if size != (0, 0) and size != (base.hidden_size, base.num_layers):
            hidden, layers = size
            head_size = base.hidden_size // base.num_heads
            keys.update(hidden_size=hidden, num_layers=layers, num_heads=max(hidden // head_size, 1))
            keys.update(layers_per_ipu=(layers,))
        return replace(base, **keys)


def bert(name: str = "BERT", learning_rate_factor: float = 1.0) -> Point:
    return Point(name, _BERT, learning_rate_factor)


def pre_norm_bert(name: str = "+ PreNorm", learning_rate_factor: float = 1.0) -> Point:
    return Point(name, {**_BERT, "norm": "pre"}, learning_rate_factor)


def groupbert(name: str = "GroupBERT") -> Point:
    return replace(ablation()[-1], name=name)


def ablation() -> List[Point]:
    """From BERT to GroupBERT, each point with one enhancement more than the one before (Figure 5)."""
    keys: Dict[str, Any] = dict(_BERT)
    points = [bert(), pre_norm_bert()]
    for name, more in (
        ("+ GFFN", {"feed_forward": "grouped_projected"}),
        ("+ convolution with its GFFN", {"convolution": True}),
        ("+ no dropout", {"hidden_dropout": 0.0}),
    ):
        keys = {**keys, "norm": "pre", **more}
        points.append(Point(name, keys))
    return [*points, Point("+ 4x learning rate", keys, HIGHER_LEARNING_RATE)]


SCALES = Path(__file__).with_name("studies.yml")
Size = Tuple[int, int]  # hidden size, layers


@dataclass(frozen=True)
class Spot:
    """What is trained over all seeds: a point at a size. `label` names it for people."""

    label: str
    point: Point
    size: Size


@dataclass(frozen=True)
class Measured:
    """A spot's trainings, one a seed; seeds that the budget left out are missing."""

    spot: Spot
    by_seed: Dict[int, Trained]

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
        """One of the trainings: all have the same sizes and FLOPs."""
        return next(iter(self.by_seed.values()), None)

    def mean(self) -> Tuple[Optional[float], Optional[float]]:
        """The mean loss over seeds and half of its 95% confidence interval; None where there's none."""
        return mean_or_none(list(self.losses.values()))


def entropy_note(measured: Sequence[Measured]) -> List[str]:
    """What a model that ignores the context would reach at best, beside which losses mean something."""
    entropies = [one.unigram_entropy_nats for each in measured for one in each.by_seed.values()]
    known = [entropy for entropy in entropies if not math.isnan(entropy)]
    if not known:
        return []
    return [f"Unigram entropy of the held-out text (measured): {min(known):.4f} nats."]


def mean_or_none(samples: Sequence[float]) -> Tuple[Optional[float], Optional[float]]:
    if not samples:
        return None, None
    mean, half_width = mean_and_half_width(samples)
    return mean, None if math.isnan(half_width) else half_width


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a study; the configuration's own keys are flags too."""
    parser.add_argument("--scale", default="demo", help="a recipe of --scales: demo or study [demo]")
    parser.add_argument(
        "--scales", type=Path, default=SCALES, help="a file of recipes [benchmarks/studies.yml]"
    )
    parser.add_argument("--seeds", type=positive, default=2, help="trainings of each point [2]")
    parser.add_argument("--runs", type=Path, help="where trainings are kept [OUTPUT/runs]")
    configuration.add_flags(parser)


def positive(text: str) -> int:
    """A flag's positive integer, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def base_of(flags: argparse.Namespace) -> Config:
    """The study's recipe with the command line's keys over it. Raises ConfigError."""
    overrides = configuration.overrides_from(flags)
    base = configuration.load(flags.scale, path=flags.scales, overrides=overrides)
    device = command_line.choose_device(base)
    # Trainings are kept by the name of the device that they ran on, not by "auto".
    return configuration.load(flags.scale, path=flags.scales, overrides={**overrides, "device": device.name})


def measure(
    spots: Sequence[Spot], base: Config, *, seeds: int, runs: Path, budget: Budget
) -> Tuple[List[Measured], List[str]]:
    """Trains every spot with every seed, first all spots with the first seed, and so on.

    Returns what was measured, in the order of `spots`, and the names of the trainings that the budget left
    out. Seeds also decide data order, masks and sentence pairs, in the same way at every spot: so losses of
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
    return [Measured(spot, found) for spot, found in zip(spots, by_seed)], missing


def paired_difference(of: Measured, to: Measured) -> Tuple[Optional[float], Optional[float]]:
    """Mean over the seeds that both have of the difference in loss, and half of its 95% interval."""
    common = sorted(set(of.losses) & set(to.losses))
    return mean_or_none([of.losses[seed] - to.losses[seed] for seed in common])


def between(flops: float, points: Sequence[Tuple[float, float]]) -> Optional[float]:
    """The loss at `flops` on the line through (FLOPs, loss) `points`, straight in log FLOPs between two of
    them; None outside of their range."""
    ordered = sorted(points)
    for (low, low_loss), (high, high_loss) in zip(ordered, ordered[1:]):
        if low <= flops <= high:
            share = (math.log(flops) - math.log(low)) / (math.log(high) - math.log(low))
            return low_loss + share * (high_loss - low_loss)
    return None


def sizes_of(base: Config, factors: Sequence[Tuple[float, float]]) -> List[Size]:
    """(hidden size, layers) for factors of the base's; hidden sizes stay multiples of the head size."""
    head = base.hidden_size // base.num_heads
    return [
        (max(round(base.hidden_size * wide / head), 1) * head, max(round(base.num_layers * deep), 1))
        for wide, deep in factors
    ]


def size_name(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
