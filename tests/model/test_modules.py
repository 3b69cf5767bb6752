"""Each module against what it is defined as, written another way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import PretrainingModel, SquadModel
from model.encoder import Attention, Convolution, FeedForward, GroupedConvolution, Residual, additive_mask
from model.heads import gather_positions
from tests.model.builders import BERT, GROUPBERT, VARIANTS, perturb


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "groups", "kernel"),
    [(32, 32, 4, 7), (32, 32, 2, 3), (128, 32, 4, 1), (32, 32, 1, 1), (8, 8, 8, 7)],
)
@pytest.mark.parametrize("shape", [(3, 20), (1, 20), (3, 1), (1, 1), (2, 5)])
def test_grouped_convolution_is_conv1d(
    channels_in: int, channels_out: int, groups: int, kernel: int, shape: tuple
) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv1d(channels_in, channels_out, kernel, groups=groups, padding="same").double()
    ours = GroupedConvolution(channels_in, channels_out, groups=groups, kernel_size=kernel).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(*shape, channels_in, dtype=torch.float64)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_ours, y_theirs = ours(x_ours), theirs(x_theirs.transpose(1, 2)).transpose(1, 2)
    assert y_ours.shape == (*shape, channels_out)
    torch.testing.assert_close(y_ours, y_theirs)
    seed = torch.randn_like(y_ours)
    y_ours.backward(seed)
    y_theirs.backward(seed)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


def test_grouped_contraction_reads_and_writes_its_own_quarter() -> None:
    """Group j reads channels [j h, (j + 1) h) of 4 h and writes [j h / 4, (j + 1) h / 4)."""
    hidden = 8
    contraction = GroupedConvolution(4 * hidden, hidden, groups=4)
    nn.init.ones_(contraction.weight)
    nn.init.zeros_(contraction.bias)
    for j in range(4):
        x = torch.zeros(1, 1, 4 * hidden)
        x[..., j * hidden : (j + 1) * hidden] = 1.0
        expected = torch.zeros(1, 1, hidden)
        expected[..., j * hidden // 4 : (j + 1) * hidden // 4] = float(hidden)
        assert torch.equal(contraction(x), expected)


def test_attention_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(BERT).double(), nn.MultiheadAttention(32, 4, batch_first=True).double()
    perturb(ours)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x = torch.randn(3, 10, 32, dtype=torch.float64)
    mask = (torch.arange(10) < torch.tensor([[10], [4], [7]])).int()
    expected = theirs(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0]
    torch.testing.assert_close(ours(x, additive_mask(mask, x.dtype)), expected)


def test_convolution_module_as_defined() -> None:
    torch.manual_seed(0)
    ours = Convolution(GROUPBERT).double()
    perturb(ours)
    x = torch.randn(3, 10, 32, dtype=torch.float64)
    real = (torch.arange(10) < torch.tensor([[10], [4], [7]])).double().unsqueeze(-1)
    both = F.linear(x, torch.cat([ours.values.weight, ours.gates.weight]),
                    torch.cat([ours.values.bias, ours.gates.bias]))  # fmt: skip
    gated = F.glu(both) * real
    weight, bias = ours.convolution.weight, ours.convolution.bias
    convolved = F.conv1d(gated.transpose(1, 2), weight, bias, padding=3, groups=4).transpose(1, 2)
    normalised = F.layer_norm(convolved, (32,), ours.norm.weight, ours.norm.bias, eps=1e-3)
    expected = (normalised * torch.sigmoid(normalised)) @ ours.output.weight.t() + ours.output.bias
    torch.testing.assert_close(ours(x, real), expected)


@pytest.mark.parametrize("kind", ["dense", "grouped", "grouped_projected"])
def test_feed_forward_as_defined(kind: str) -> None:
    config = VARIANTS[f"pre-plain-{kind}"]
    ours = FeedForward(config).double()
    perturb(ours)
    x = torch.randn(3, 10, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = x @ ours.expansion.weight.t() + ours.expansion.bias
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    weight, bias = ours.contraction.weight, ours.contraction.bias
    if kind == "dense":
        expected = inner @ weight.t() + bias
    else:
        block_diagonal = torch.block_diag(*weight.squeeze(-1).chunk(4))
        expected = inner @ block_diagonal.t() + bias
    if kind == "grouped_projected":
        expected = expected @ ours.projection.weight.t() + ours.projection.bias
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("head", [PretrainingModel, SquadModel])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer_norm_has_the_configured_epsilon(name: str, head: type) -> None:
    model = head(replace(VARIANTS[name], layer_norm_eps=1e-4))
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    config = model.config
    in_a_layer = 5 if config.convolution else 2  # one in each residual module, one inside the convolution
    last, in_the_head = int(config.norm == "pre"), int(head is PretrainingModel)
    assert len(norms) == 1 + in_a_layer * config.num_layers + last + in_the_head
    assert {norm.eps for norm in norms} == {1e-4}


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_residual_normalises_before_or_after(norm: str) -> None:
    body = nn.Linear(32, 32)
    residual = Residual(body, VARIANTS[f"{norm}-plain-dense"])
    perturb(residual)
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    def normalise(y: Tensor) -> Tensor:
        centred = y - y.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        return scaled * residual.norm.weight + residual.norm.bias

    expected = x + body(normalise(x)) if norm == "pre" else normalise(x + body(x))
    torch.testing.assert_close(residual(x), expected)


def test_dropout_stands_on_the_branch_not_on_the_skip() -> None:
    residual = Residual(nn.Identity(), replace(VARIANTS["pre-plain-dense"], hidden_dropout=0.5))
    x = torch.randn(4, 8, 32)
    branch = residual(x) - x
    dropped = branch == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(branch[~dropped], (2 * residual.norm(x))[~dropped], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gathering_picks_each_sequence_own_positions(dtype: torch.dtype) -> None:
    x = torch.arange(2 * 5 * 3).view(2, 5, 3).float()
    picked = gather_positions(x, torch.tensor([[4, 0, 4], [1, 2, 0]], dtype=dtype))
    assert torch.equal(picked, torch.stack([x[0, 4], x[0, 0], x[0, 4], x[1, 1], x[1, 2], x[1, 0]]))
