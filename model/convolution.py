"""GroupBERT's convolution module: what a token takes from its neighbours, without attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .grouped import GroupedConvolution


class Convolution(nn.Module):
    """Gated linear unit, padding to zero, grouped convolution, LayerNorm, SiLU, projection
    (Chelombiev et al. 2021, arXiv 2106.05822).

    Padded tokens are zeroed before the convolution, else real tokens near the end of a sequence would see
    them. Values and gates are two linear layers. The convolution has a bias, as in optimum-graphcore (the
    TensorFlow original had none).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.values = nn.Linear(hidden, hidden)
        self.gates = nn.Linear(hidden, hidden)
        self.convolution = GroupedConvolution(
            hidden, hidden, groups=hidden // config.conv_group_size, kernel_size=config.conv_kernel_size
        )
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.output = nn.Linear(hidden, hidden)

    def forward(self, x_bsh: Tensor, real_bs1: Tensor) -> Tensor:
        """[B, S, h], [B, S, 1] of the same dtype (1 real token, 0 padding) -> [B, S, h]."""
        gated_bsh = self.values(x_bsh) * torch.sigmoid(self.gates(x_bsh)) * real_bs1
        return self.output(F.silu(self.norm(self.convolution(gated_bsh))))
