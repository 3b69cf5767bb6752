"""What keeps a convolution from seeing two sequences of a row costs on an IPU: why rows have separators."""

from __future__ import annotations

from typing import Dict

import poptorch
import pytest
import torch
import torch.nn.functional as F
from ipu_simulator.cost.assess import assess
from ipu_simulator.environment import target
from poptorch import simulator
from torch import Tensor, nn

from model import PRESETS
from model.encoder import Convolution

pytestmark = pytest.mark.slow

MICRO_BATCH, LENGTH, TAPS = 10, 128, 7


class Module(nn.Module):
    """The convolution module of GroupBERT Base on packed rows: [B, S, h], [B, S, masks] -> a loss."""

    masks = 1

    def __init__(self) -> None:
        super().__init__()
        self.body = Convolution(PRESETS["groupbert_base"])

    def forward(self, x_bsh: Tensor, masks_bsm: Tensor) -> Tensor:
        body = self.body
        gated_bsh = body.values(x_bsh) * torch.sigmoid(body.gates(x_bsh))
        out_bsh = body.output(F.silu(body.norm(self.convolved(gated_bsh, masks_bsm))))
        return poptorch.identity_loss((x_bsh + out_bsh).float().mean(), reduction="none")

    def convolved(self, x_bsh: Tensor, masks_bsm: Tensor) -> Tensor:
        """With separators, a mask of the padding is enough."""
        return self.body.convolution(x_bsh * masks_bsm)

    def of(self, x_bsh: Tensor, weight: Tensor, padding: int) -> Tensor:
        image = x_bsh.unsqueeze(1).permute(0, 3, 1, 2)
        groups = self.body.convolution.groups
        convolved = F.conv2d(image, weight.unsqueeze(2), None, padding=(0, padding), groups=groups)
        return convolved.permute(0, 2, 3, 1).squeeze(1)


class EveryOther(Module):
    """Two convolutions, of the sequences with odd and with even numbers."""

    masks = 2

    def convolved(self, x_bsh: Tensor, masks_bsm: Tensor) -> Tensor:
        masks = [masks_bsm[..., index : index + 1] for index in range(2)]
        both = torch.cat([x_bsh * mask for mask in masks])
        parts = self.of(both, self.body.convolution.weight, TAPS // 2).chunk(2)
        return parts[0] * masks[0] + parts[1] * masks[1] + self.body.convolution.bias


class EachTap(Module):
    """A mask for each tap of the kernel."""

    masks = TAPS

    def convolved(self, x_bsh: Tensor, masks_bsm: Tensor) -> Tensor:
        padded = F.pad(x_bsh, (0, 0, TAPS // 2, TAPS // 2))
        out = self.body.convolution.bias
        for tap in range(TAPS):
            seen = padded[:, tap : tap + x_bsh.shape[1]]
            weight = self.body.convolution.weight[:, :, tap : tap + 1]
            out = out + self.of(seen, weight, 0) * masks_bsm[..., tap : tap + 1]
        return out


def test_separators_cost_least_then_every_other_sequence_then_each_tap() -> None:
    seconds: Dict[str, float] = {}
    for kind in (Module, EveryOther, EachTap):
        options = poptorch.Options()
        options.Training.gradientAccumulation(64)
        with simulator.without_memory():
            model = kind().half()
            inputs = (
                torch.zeros(MICRO_BATCH, LENGTH, 768, dtype=torch.float16),
                torch.zeros(MICRO_BATCH, LENGTH, kind.masks, dtype=torch.float16),
            )
            graph = simulator.capture(model, inputs, {}, options, training=True)
        optimizer = poptorch.optim.AdamW(model.parameters())
        settings = simulator.settings_of(options, optimizer, micro_batch_size=MICRO_BATCH)
        verdict = assess(graph, settings, target("pod4"), name=kind.__name__, sequence_length=LENGTH)
        seconds[kind.__name__] = verdict.step_s - verdict.update_s - verdict.host_s
    assert seconds["Module"] < seconds["EveryOther"] < seconds["EachTap"]
