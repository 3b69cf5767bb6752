"""Weights before training."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import nn

STANDARD_DEVIATION = 0.02
CUT = 2.0  # in standard deviations


def initialise(model: nn.Module, seed: Optional[int] = None) -> None:
    """Sets every parameter of `model`: LayerNorm weights to 1, biases to 0, all others to the normal
    distribution of standard deviation 0.02 cut at two of them (Devlin et al. 2018; their code's
    `truncated_normal_initializer`). There is no other case, so that no parameter keeps a default of
    PyTorch's.

    With a `seed` the weights depend on it alone, without one they come from PyTorch's global generator.
    Parameters on the meta device are left alone.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                continue
            if name == "bias":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(parameter)
            else:
                _truncated_normal_(parameter, generator)


@torch.no_grad()
def _truncated_normal_(tensor: torch.Tensor, generator: Optional[torch.Generator]) -> None:
    """By the inverse of the distribution function. torch.nn.init.trunc_normal_ does the same, but takes no
    generator on torch 2.0."""
    bound = math.erf(CUT / math.sqrt(2.0))
    tensor.uniform_(-bound, bound, generator=generator)
    tensor.erfinv_().mul_(STANDARD_DEVIATION * math.sqrt(2.0))
    # Only rounding can put a weight beyond the cut.
    tensor.clamp_(-CUT * STANDARD_DEVIATION, CUT * STANDARD_DEVIATION)
