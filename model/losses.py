"""Losses and counts over the labels that aren't ignored."""

from __future__ import annotations

from typing import Tuple

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def mean_cross_entropy(logits_nc: Tensor, labels_n: Tensor) -> Tensor:
    """Cross entropy, the mean over real labels: [N, classes], integers [N] -> 0-d float32; 0 if all are
    ignored.

    A label's loss is computed in the model's dtype, so that a float16 model never holds float32 logits of a
    whole vocabulary; sum and mean are float32.
    """
    losses_n = F.cross_entropy(logits_nc, labels_n.long(), ignore_index=IGNORED, reduction="none").float()
    return losses_n.sum() / real_labels(labels_n).clamp(min=1.0)


def real_labels(labels_n: Tensor) -> Tensor:
    """The number of labels that aren't ignored, 0-d float32."""
    return (labels_n != IGNORED).float().sum()


def correct_and_count(logits_nc: Tensor, labels_n: Tensor) -> Tuple[Tensor, Tensor]:
    """How many real labels are the likeliest class, and how many there are: 0-d float32 each."""
    correct_n = logits_nc.detach().argmax(dim=-1) == labels_n  # never so where ignored: no class is negative
    return correct_n.float().sum(), real_labels(labels_n)
