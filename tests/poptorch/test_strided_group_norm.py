"""PopART's option groupNormStridedChannelGrouping: a group is every n-th channel."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import poptorch

GROUPS, CHANNELS = 3, 12


class Norm(torch.nn.Module):
    def __init__(self, norm, layer=None):
        super().__init__()
        self.layer = layer or torch.nn.GroupNorm(GROUPS, CHANNELS)
        self.norm = norm
        if self.layer.weight is not None:
            with torch.no_grad():
                self.layer.weight.uniform_(1, 2)
                self.layer.bias.uniform_(-1, 1)

    def forward(self, x):
        return self.norm(self.layer, x)


def strided(layer, x):
    """By the definition: channel c belongs to group c % G."""
    made = torch.empty_like(x)
    for group in range(layer.num_groups):
        channels = slice(group, None, layer.num_groups)
        part = x[:, channels]
        dims = tuple(range(1, part.dim()))
        variance, mean = torch.var_mean(part, dims, keepdim=True, correction=0)
        made[:, channels] = (part - mean) / (variance + layer.eps).sqrt()
    if layer.weight is None:
        return made
    shape = (1, -1, *[1] * (x.dim() - 2))
    return made * layer.weight.reshape(shape) + layer.bias.reshape(shape)


def options(value=True):
    made = poptorch.Options()
    made._Popart.set("groupNormStridedChannelGrouping", value)
    return made


NORMS = [
    lambda layer, x: layer(x),
    lambda layer, x: torch.nn.functional.group_norm(x, GROUPS, layer.weight, bias=layer.bias, eps=layer.eps),
    lambda layer, x: torch.group_norm(x, GROUPS, layer.weight, layer.bias, layer.eps, True),
]


@pytest.mark.parametrize("shape", [(2, CHANNELS), (2, CHANNELS, 5), (2, CHANNELS, 3, 2)])
@pytest.mark.parametrize("norm", NORMS)
def test_values(norm, shape):
    x, model = torch.randn(shape), Norm(norm)
    executor = poptorch.inferenceModel(model, options())
    for _ in range(2):
        torch.testing.assert_close(executor(x), strided(model.layer, x).detach(), atol=1e-6, rtol=1e-5)
    assert torch.equal(poptorch.inferenceModel(model, options(False))(x), model(x).detach())
    assert not torch.allclose(strided(model.layer, x), model(x), atol=1e-2)


def test_without_weights_and_where_grouping_makes_no_difference():
    x = torch.randn(2, CHANNELS, 4)
    plain = Norm(NORMS[0], torch.nn.GroupNorm(GROUPS, CHANNELS, affine=False))
    made = poptorch.inferenceModel(plain, options())(x)
    torch.testing.assert_close(made, strided(plain.layer, x), atol=1e-6, rtol=1e-5)
    for layer in (
        torch.nn.GroupNorm(1, CHANNELS),
        torch.nn.GroupNorm(CHANNELS, CHANNELS),
        torch.nn.InstanceNorm1d(CHANNELS, affine=True),
        torch.nn.LayerNorm([CHANNELS, 4]),
    ):
        assert torch.equal(poptorch.inferenceModel(layer, options())(x), layer(x).detach())


def test_gradients():
    x = torch.randn(4, CHANNELS, 5)

    class Squares(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return poptorch.identity_loss(self.norm(x).pow(3), "sum")

    reference, model = Norm(strided), Norm(NORMS[0])
    model.load_state_dict(reference.state_dict())
    Squares(reference)(x).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    poptorch.trainingModel(Squares(model), options(), optimizer)(x)
    for name, weight in reference.named_parameters():
        changed = before[name] - dict(model.named_parameters())[name]
        torch.testing.assert_close(changed, weight.grad, atol=1e-4, rtol=1e-4)
