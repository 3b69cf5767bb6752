"""Errors of tracing for code that a graph can't hold, and synthetic data."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.poptorch.executor_models import batch, options, poptorch


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
        (lambda x: x if x.sum() > 0 else -x, r"aten::item is only supported in eager mode"),
        (lambda x: x * float(x.sum()), r"aten::item is only supported in eager mode"),
        (lambda x: x + torch.tensor(x.tolist()), r"aten::item is only supported in eager mode"),
        (lambda x: torch.from_numpy(x.numpy()), r"aten::item is only supported in eager mode"),
        (lambda x: x[: int(x.sum())], r"aten::item is only supported in eager mode"),
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


def test_the_hosts_own_tensors_have_values():
    scale, x = torch.tensor(2.0), batch(2)[0]
    executor = poptorch.inferenceModel(_Calls(lambda x: x * scale.item() if (scale > 1).all() else x))
    assert torch.equal(executor(x), 2 * x)


def test_a_tensor_that_stays_on_the_host_is_warned_of():
    mine, x = torch.ones(2), batch(2)[0]
    with pytest.warns(UserWarning, match="Output expected to be on the IPU but is on cpu"):
        poptorch.inferenceModel(_Calls(lambda x: (x, mine)))(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = _Calls(lambda x: (x[0], x.detach(), x.data, torch.zeros(2, device=x.device), *x.unbind()))
        poptorch.inferenceModel(made)(x)


def test_the_device_of_a_tensor_is_the_ipu():
    x = batch(2)[0]
    executor = poptorch.inferenceModel(
        _Calls(lambda x: x + torch.ones(1).to(x.device) + x.to(device=x.device))
    )
    assert torch.equal(executor(x), x + 1 + x)


def test_synthetic_data_are_used_in_place_of_the_inputs():
    x = batch(2)[0]
    executor = poptorch.inferenceModel(_Calls(lambda x: x + 1), options().enableSyntheticData(2))
    assert torch.equal(executor(x), torch.ones_like(x))
