"""The device "ipu", named in a forward."""

from __future__ import annotations

import torch

from .executor_models import poptorch


class NamesIpu(torch.nn.Module):
    """Makes and moves tensors by the device's name, in all the ways a program may write it."""

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
