"""The device "ipu" by name in a forward."""

from __future__ import annotations

import torch

from tests.poptorch.executor_models import poptorch


class NamesIpu(torch.nn.Module):
    """Creates and moves tensors by the device's name, in every way that PyTorch allows."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        ipu = "ipu" if poptorch.isRunningOnIpu() else "cpu"
        made = torch.arange(3, device=ipu) + torch.zeros_like(x, device=torch.device(ipu, 0))
        moved = torch.ones(3).to(ipu, torch.float32) + x.to(device=f"{ipu}:0") + x.new_ones(3, device=ipu)
        if poptorch.isRunningOnIpu():
            moved = moved.ipu()
        out = (made + moved) * self.weight
        return out, poptorch.identity_loss(out, "sum")


def test_the_ipu_by_its_name(tmp_path):
    model, x = NamesIpu(), torch.tensor([1.0, 2.0, 3.0])
    expected = model(x)[0].detach()
    for executor in (
        poptorch.inferenceModel(model),
        poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.0)),
    ):
        for _ in range(2):  # the first call compiles
            assert torch.equal(executor(x)[0], expected)
    executor.save(str(tmp_path / "model.poptorch"))
    assert torch.equal(poptorch.load(str(tmp_path / "model.poptorch"))(x)[0], expected)


class ReadsDevice(torch.nn.Module):
    """Creates tensors on other tensors' devices, and reads the devices' names."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.constant = [torch.ones(3)]  # neither a parameter nor a buffer: stays on the host
        self.seen: set = set()

    def forward(self, x):
        device = next(self.parameters()).device
        ones = self.constant[0].to(device, x.dtype)
        y = self.layer(x) + torch.arange(3, device=device) + ones
        ones += 1  # the device's
        with torch.device(x.device):
            y = y + torch.ones(3)
        self.seen |= {str(x.device), str(y.device), str(device), self.constant[0].device.type, y.is_ipu}
        return y, torch.nn.functional.mse_loss(y, torch.zeros_like(y, device=y.device))


def test_a_tensor_says_that_it_is_on_the_ipu():
    model, x = ReadsDevice(), torch.tensor([[1.0, 2.0, 3.0]])
    expected = model(x)[0].detach()
    assert model.seen == {"cpu", False}
    model.constant[0].fill_(1)
    model.seen.clear()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.0))
    for _ in range(2):
        out, _ = executor(x)
        assert torch.equal(out, expected) and out.device.type == "cpu"
    assert model.seen == {"ipu:0", "cpu", True} and torch.equal(model.constant[0], torch.ones(3))
    assert model.layer.weight.device.type == "cpu"
