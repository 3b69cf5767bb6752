"""How blocks on IPUs become a pipeline."""

from __future__ import annotations

from typing import Sequence


def pipeline_depth(ipus: Sequence[int]) -> int:
    """The number of forward pipeline stages of blocks that stand on `ipus`, in the order they run.

    PopTorch counts changes of the active IPU, from IPU 0 on, and not blocks: BERT, whose heads return to
    IPU 0, has one stage more than it has IPUs.
    """
    depth, current = 1, 0
    for ipu in ipus:
        if ipu != current:
            depth, current = depth + 1, ipu
    return depth


def minimum_accumulation(depth: int) -> int:
    """The smallest `gradient_accumulation` that PopTorch accepts for a training pipeline: 2n - 1."""
    return 2 * depth - 1


def encoder_blocks(layers_per_ipu: Sequence[int]) -> Sequence[int]:
    """The IPU of each block in running order: embeddings on 0, one entry a layer, heads on 0."""
    layers = [ipu for ipu, count in enumerate(layers_per_ipu) for _ in range(count)]
    return [0, *layers, 0]
