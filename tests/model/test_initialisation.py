from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model import PretrainingModel, SquadModel
from tests.model.builders import GROUPBERT, VARIANTS

# The standard deviation of a standard normal distribution cut at +-2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
_DENSITY_AT_2 = math.exp(-2.0) / math.sqrt(2 * math.pi)
CUT_DEVIATION = 0.02 * math.sqrt(1 - 4 * _DENSITY_AT_2 / math.erf(math.sqrt(2.0)))


@pytest.mark.parametrize("head", [PretrainingModel, SquadModel])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_follows_its_rule(name: str, head: type) -> None:
    model = head(VARIANTS[name], seed=3)
    norms = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    for path, parameter in model.named_parameters():
        if path.endswith("bias"):
            assert torch.all(parameter == 0), path
        elif path in norms:
            assert torch.all(parameter == 1), path
        else:
            values = parameter.detach().double()
            assert values.abs().max() <= 0.04, path
            n = values.numel()
            assert n >= 64, path
            assert values.mean().abs() < 4 * CUT_DEVIATION / math.sqrt(n), path
            # The sample deviation of n light-tailed values spreads by less than sigma / sqrt(2 n).
            assert abs(values.std() - CUT_DEVIATION) < 4 * CUT_DEVIATION / math.sqrt(2 * n), path


def test_the_cut_normal_is_one() -> None:
    """Against the distribution function, by Kolmogorov's statistic: below 1.63 / sqrt(n) for 99% of
    samples."""
    torch.manual_seed(0)
    values = torch.sort(
        PretrainingModel(GROUPBERT, seed=5).encoder.embeddings.word.weight.detach().flatten()
    )[0]
    bound = math.erf(math.sqrt(2.0))
    expected = (torch.erf(values.double() / (0.02 * math.sqrt(2.0))) / bound + 1) / 2
    observed = (torch.arange(len(values)) + 0.5) / len(values)
    assert (expected - observed).abs().max() < 1.63 / math.sqrt(len(values))


def test_a_seed_alone_decides() -> None:
    torch.manual_seed(1)
    first = PretrainingModel(GROUPBERT, seed=7).state_dict()
    torch.manual_seed(2)
    again = PretrainingModel(GROUPBERT, seed=7).state_dict()
    other = PretrainingModel(GROUPBERT, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.layers.0.feed_forward.body.contraction.weight"],
                           other["encoder.layers.0.feed_forward.body.contraction.weight"])  # fmt: skip


def test_without_a_seed_the_global_generator_decides() -> None:
    def draw() -> torch.Tensor:
        torch.manual_seed(11)
        return PretrainingModel(GROUPBERT).heads.pooler.weight

    assert torch.equal(draw(), draw())
