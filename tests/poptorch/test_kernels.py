"""Old versions of PyTorch have kernels with wrong results."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import poptorch


@pytest.mark.parametrize("version, allowed", [("2.0.1+cu117", False), ("2.1.0", True), ("2.13.0+cpu", True)])
def test_onednn_is_left_out_where_it_is_wrong(monkeypatch, version, allowed):
    before, seen = torch.backends.mkldnn.enabled, []

    class Looks(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.backends.mkldnn.enabled)
            return x * 2

    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    poptorch.inferenceModel(Looks())(torch.ones(1))
    assert set(seen) == {before and allowed}
    assert torch.backends.mkldnn.enabled == before


def test_gradients_of_convolutions_are_those_of_float64():
    torch.manual_seed(0)

    class Convolves(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Conv1d(32, 32, 3, padding=1, groups=groups) for groups in (1, 8)
            )

        def forward(self, x):
            for layer in self.layers:
                x = torch.nn.functional.gelu(layer(x.transpose(1, 2))).transpose(1, 2)
            return poptorch.identity_loss(x**2, "mean")

    model, x = Convolves(), torch.randn(1, 16, 32)
    exact = Convolves().double()
    exact.load_state_dict(model.state_dict())
    exact(x.double()).backward()
    expected = [(weight - weight.grad).float() for weight in exact.parameters()]
    poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1.0))(x)
    for weight, value in zip(model.parameters(), expected):
        torch.testing.assert_close(weight.detach(), value, atol=1e-5, rtol=0)
