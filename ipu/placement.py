"""IPU machines, and the placement of a model's blocks on IPUs: the only place that defines it.

A model is a chain of blocks: the embeddings, the encoder layers, the head. Embeddings are on IPU 0. A head
that shares the word embeddings (pretraining's, as in every published recipe) is on IPU 0 too, which adds a
pipeline stage; any other head is on the last IPU that has layers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, List, Sequence, Tuple

from .device import DROP_IN

EMBEDDING = "Embedding"
_SECOND_HALF = " second half"


class StagesError(ValueError):
    """A placement or a serialisation factor that is illegal for the model."""


@dataclass(frozen=True)
class Head:
    """The last block of a model: its name, and whether it shares the word embeddings."""

    block: str
    shares_embeddings: bool


@lru_cache(maxsize=None)
def machine_ipus() -> Dict[str, int]:
    """The IPUs of each machine, by name: the GC200 generation first, then Bow, from small to large.

    Read from the simulator's target files, which needs neither the simulator nor its version of Python.
    """
    found: Dict[str, int] = {}
    for path in (DROP_IN / "ipu_simulator" / "targets").glob("*.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if "num_ipus" in facts:
            found[path.stem] = int(facts["num_ipus"]["value"])
    return dict(sorted(found.items(), key=lambda item: (item[0].startswith("bow-"), item[1])))


def layer_block(layer: int, *, second_half: bool = False) -> str:
    """The name of an encoder layer's block, or of its second half if that begins on the next IPU."""
    return f"Encoder{layer}{_SECOND_HALF if second_half else ''}"


def placement(num_layers: int, layers_per_ipu: Sequence[float], head: Head) -> List[Tuple[str, int]]:
    """The pipeline blocks in running order and the IPU of each: EMBEDDING, `layer_block`s, the head.

    A count may end in .5: the next IPU then begins with the layer's second half. Raises StagesError.
    """
    for stage, count in enumerate(layers_per_ipu):
        if not isinstance(count, (int, float)) or isinstance(count, bool) or count < 0 or count * 2 % 1:
            raise StagesError(
                f"layers_per_ipu has {count!r} for IPU {stage}, but a count must be 0, 0.5, 1, 1.5, ..."
            )
    total = sum(layers_per_ipu)
    if total != num_layers:
        difference = f"{abs(total - num_layers):g} too {'many' if total > num_layers else 'few'}"
        raise StagesError(
            f"layers_per_ipu {list(layers_per_ipu)} places {total:g} encoder layers, but the model has "
            f"{num_layers} ({difference}): its entries must add up to num_layers"
        )
    of_halves = [stage for stage, count in enumerate(layers_per_ipu) for _ in range(round(2 * count))]
    blocks = [(EMBEDDING, 0)]
    for layer in range(num_layers):
        first, second = of_halves[2 * layer : 2 * layer + 2]
        blocks.append((layer_block(layer), first))
        if second != first:
            blocks.append((layer_block(layer, second_half=True), second))
    return [*blocks, (head.block, 0 if head.shares_embeddings else blocks[-1][1])]


def device_ipus(layers_per_ipu: Sequence[float]) -> List[int]:
    """The index on a device of each IPU of a replica.

    PopTorch reserves a power of two of IPUs, but compiles for exactly the number that a program uses if no
    IPU is attached. So that both are one program, the last IPU in use has the last index of the power of two.
    """
    last = max([index for index, layers in enumerate(layers_per_ipu) if layers], default=0)
    return [(1 << last.bit_length()) - 1 if index == last else index for index in range(len(layers_per_ipu))]


def pipeline_stages(layers_per_ipu: Sequence[float], head: Head) -> int:
    """Stages of the forward pipeline: one, plus one wherever the next block is on another IPU.

    (PopTorch counts changes of IPU, not blocks.)
    """
    used = [int(layers > 0) for layers in layers_per_ipu]  # more layers on an IPU don't add stages
    way = [ipu for _, ipu in placement(sum(used), used, head)]
    return 1 + sum(before != after for before, after in zip(way, way[1:]))


def minimum_gradient_accumulation(layers_per_ipu: Sequence[float], head: Head) -> int:
    """Micro batches that fill a training pipeline: 2n - 1 for n forward stages (PopTorch's rule)."""
    return 2 * pipeline_stages(layers_per_ipu, head) - 1


def balanced_layers(num_layers: int, ipus: int) -> List[int]:
    """A placement like the published ones: IPU 0, with embeddings and heads, has about 4 layers fewer."""
    if ipus == 1:
        return [num_layers]
    first = max(0, (num_layers + 4) // ipus - 4)
    share, rest = divmod(num_layers - first, ipus - 1)
    return [first] + [share + (ipu < rest) for ipu in range(ipus - 1)]


def validation_layers(num_layers: int) -> Tuple[int, ...]:
    """The published placement for evaluating a fine-tuned model: two IPUs with half of the layers each."""
    return (num_layers // 2, num_layers - num_layers // 2)


def divisors(number: int) -> List[int]:
    """The divisors of `number`, in ascending order."""
    small = [factor for factor in range(1, math.isqrt(number) + 1) if number % factor == 0]
    return small + [number // factor for factor in reversed(small) if factor * factor != number]


def nearest_divisors(number: int, wanted: int) -> List[int]:
    """The divisors of `number` next below and next above `wanted`."""
    legal = divisors(number)
    below = [divisor for divisor in legal if divisor < wanted]
    above = [divisor for divisor in legal if divisor > wanted]
    return below[-1:] + above[:1]


def nearest_multiples(number: int, factor: int) -> List[int]:
    """The multiples of `factor` next below `number` (or equal to it) and next above."""
    below = number // factor * factor
    return [multiple for multiple in (below, below + factor) if multiple > 0]
