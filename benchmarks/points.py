"""The models that the studies compare: from BERT to GroupBERT, at several sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from config import Config

Size = Tuple[int, int]  # hidden size, layers
# A study uses the sizes, data and steps of these recipes.
SCALES = Path(__file__).with_name("studies.yml")

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
    """A named model and its training settings; `learning_rate_factor` multiplies the study's 1x."""

    name: str
    keys: Mapping[str, Any]
    learning_rate_factor: float = 1.0

    def config(self, base: Config, *, seed: int, size: Optional[Size] = None) -> Config:
        """`base` with this point's keys, and with `size` instead of base's if given.

        Heads keep base's features per head. Raises ConfigError if a size isn't valid for such a model.
        """
        keys: Dict[str, Any] = {**self.keys, "model": base.model, "seed": seed}
        keys["learning_rate"] = base.learning_rate * self.learning_rate_factor
        if size is not None and size != (base.hidden_size, base.num_layers):
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
    """From BERT to GroupBERT; each point adds one enhancement to the previous one (Figure 5)."""
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


def sizes_of(base: Config, factors: Sequence[Tuple[float, float]]) -> List[Size]:
    """(hidden size, layers) for factors of the base's; hidden sizes remain multiples of the head size."""
    head = base.hidden_size // base.num_heads
    return [
        (max(round(base.hidden_size * wide / head), 1) * head, max(round(base.num_layers * deep), 1))
        for wide, deep in factors
    ]


def size_name(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
