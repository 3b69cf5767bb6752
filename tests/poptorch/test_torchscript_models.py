"""A TorchScript module as the wrapped model."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.poptorch.executor_models import poptorch

X, Y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 1, 0, 1])


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(6.0).reshape(2, 3) / 6)
            self.layer.bias.zero_()

    def forward(self, x, y):
        logits = self.layer(x)
        return logits, torch.nn.functional.cross_entropy(logits, y)


MAKE = {
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, (X, Y)),
}


@pytest.mark.parametrize("make", MAKE)
def test_it_trains_and_infers_as_its_original(make):
    plain = Classifier()
    model = MAKE[make](copy.deepcopy(plain))
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for _ in range(3):
        logits, loss = executor(X, y=Y)
        expected, expected_loss = plain(X, Y)
        optimizer.zero_grad()
        expected_loss.backward()
        optimizer.step()
        torch.testing.assert_close(logits, expected.detach())
        torch.testing.assert_close(loss, expected_loss.detach())
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight)
    inference = poptorch.inferenceModel(model)
    torch.testing.assert_close(inference(X, Y)[1], plain(X, Y)[1].detach())
    executor.destroy()
    torch.testing.assert_close(model(X, Y)[1], plain(X, Y)[1])
    assert type(model) is type(MAKE[make](Classifier()))


@pytest.mark.parametrize("make", MAKE)
def test_what_a_file_can_hold_of_it(make, tmp_path):
    model = MAKE[make](Classifier())
    executor = poptorch.inferenceModel(model)
    output = executor(X, Y)[0]
    with pytest.raises(poptorch.Error, match=r"TorchScript .* export_model=False"):
        executor.save(str(tmp_path / "model"))
    executor.save(str(tmp_path / "model"), export_model=False)
    other = poptorch.inferenceModel(MAKE[make](Classifier()))
    other.loadExecutable(str(tmp_path / "model"))
    assert torch.equal(other(X, Y)[0], output)
    with pytest.raises(poptorch.Error, match="Mandatory parameter y missing"):
        other(X)
