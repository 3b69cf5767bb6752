"""How modules on IPUs become a pipeline."""

from __future__ import annotations

from typing import Sequence


def pipeline_stages(layers_per_ipu: Sequence[int], task: str) -> int:
    """Stages of the forward pipeline: one, and one more wherever the next module stands on another IPU.

    Embeddings stand on IPU 0. So do the pretraining heads, which makes the way back a stage of its own; the
    head of a fine-tuning task stands with the last layers. (PopTorch counts changes of the IPU, not blocks.)
    """
    way = [0] + [ipu for ipu, layers in enumerate(layers_per_ipu) if layers > 0]
    if task == "pretraining":
        way.append(0)
    return 1 + sum(before != after for before, after in zip(way, way[1:]))


def minimum_gradient_accumulation(layers_per_ipu: Sequence[int], task: str) -> int:
    """Micro batches that fill a training pipeline: 2n - 1 for n forward stages (PopTorch's own rule)."""
    return 2 * pipeline_stages(layers_per_ipu, task) - 1
