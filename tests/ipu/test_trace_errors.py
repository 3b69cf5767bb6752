"""What a graph can't hold is found while the model is compiled; synthetic data stand for the inputs."""

from __future__ import annotations

import pytest
import torch

from .executor_models import batch, options, poptorch


class _Calls(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * x.sum().item(), r"aten::item is only supported in eager mode"),
        (lambda x: x.cpu(), r"Illegal move to CPU"),
        (lambda x: x.to("cpu"), r"Illegal move to CPU"),
        (lambda x: x.to(device=torch.device("cpu")), r"Illegal move to CPU"),
        (lambda x: x[:0].sum() + x, r"Zero-sized tensors are unsupported \(Got shape \[0, 4\]\)"),
        (lambda x: x + torch.empty(3, 0).sum(), r"Zero-sized tensors are unsupported \(Got shape \[3, 0\]\)"),
    ],
)
def test_what_a_graph_cannot_hold(function, message):
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(_Calls(function)).compile(batch(2)[0])


def test_conversions_that_stay_on_the_device_are_no_moves():
    x = batch(2)[0]
    assert torch.equal(poptorch.inferenceModel(_Calls(lambda x: x.to(torch.float32)))(x), x)


def test_synthetic_data_are_used_in_place_of_the_inputs():
    x = batch(2)[0]
    executor = poptorch.inferenceModel(_Calls(lambda x: x + 1), options().enableSyntheticData(2))
    assert torch.equal(executor(x), torch.ones_like(x))
