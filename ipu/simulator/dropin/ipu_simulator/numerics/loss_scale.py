"""Automatic loss scaling: as large a scale as gradients bear in float16 (`facts.json`)."""

from __future__ import annotations

import torch

from .formats import FLOAT16, fact
from .processes import Gradients, Processes

_FACT = fact("automatic_loss_scaling")


class AutomaticLossScale:
    """A power of two, `factor`, with which a program's own loss scale is multiplied.

    Gradients of weights are what is watched; PopART watches those of activations too.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._counts = torch.zeros(2, dtype=torch.float64)  # above the edge, all

    def watch(self, gradients: Gradients) -> None:
        """Count one micro batch's scaled gradients."""
        edge = _FACT["edge_share"] * FLOAT16.largest
        for gradient in gradients:
            if gradient is not None:
                above = int((gradient.abs() > edge).sum())
                self._counts += torch.tensor([above, gradient.numel()], dtype=torch.float64)

    def update(self, scale: float, processes: Processes) -> None:
        """After a weight update with all of `scale`: the next one's factor."""
        (counts,) = processes.sum_gradients([self._counts], [self._counts])
        assert counts is not None
        above, count = counts.tolist()
        self._counts = torch.zeros_like(self._counts)
        if above > count * _FACT["largest_share_above"]:
            self.factor /= _FACT["factor"]
        elif scale * _FACT["factor"] <= 2.0 ** _FACT["largest_exponent"]:
            self.factor *= _FACT["factor"]
