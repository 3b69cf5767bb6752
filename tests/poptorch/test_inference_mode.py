"""torch.inference_mode around calls doesn't affect training and the device's weights."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import Linear, poptorch, same

X, Y = torch.linspace(-1, 1, 16).reshape(4, 4), torch.linspace(0, 1, 4).reshape(4, 1)


def trained(calls, around):
    model = Linear()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    with around():
        losses = [executor(X, Y)[1].item() for _ in range(calls)]
    return losses, model.state_dict()


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad])
def test_a_training_call_inside_trains(around):
    losses, weights = trained(3, around)
    expected, expected_weights = trained(3, torch.enable_grad)
    assert losses == expected and same(weights, expected_weights)


def test_what_is_compiled_inside_goes_on_outside():
    model = Linear()
    training = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    inference = poptorch.inferenceModel(model)
    for _ in range(2):
        training(X, Y)
        with torch.inference_mode():
            loss = inference(X, Y)[1]
        assert loss == torch.nn.functional.mse_loss(model.layer(X), Y)
    inference.copyWeightsToDevice()
    assert inference(X, Y)[1] == loss


def test_inputs_made_inside():
    class Adding(torch.nn.Module):
        def forward(self, x):
            return x.add_(1)

    with torch.inference_mode():
        x = torch.zeros(2)
    poptorch.inferenceModel(Adding())(x)
    assert torch.equal(x, torch.ones(2))
    model = Linear()
    with torch.inference_mode():
        inputs = X.clone(), Y.clone()
    poptorch.trainingModel(model)(*inputs)


def test_a_model_made_inside_only_infers():
    with torch.inference_mode():
        model = Linear()
        expected = model(X, Y)[1]
        assert poptorch.inferenceModel(model)(X, Y)[1] == expected
    with pytest.raises(poptorch.Error, match=r"created in torch\.inference_mode can't be trained"):
        poptorch.trainingModel(model)
