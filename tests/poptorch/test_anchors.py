"""Anchored tensors: values and shapes, against a plain PyTorch loop."""

import pytest
import torch

from tests.poptorch.executor_models import poptorch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.arange(6.0).reshape(2, 3) / 10)
            self.fc.bias.zero_()

    def forward(self, x, y):
        return torch.nn.functional.mse_loss(self.fc(x), y)


X = torch.arange(24.0).reshape(8, 3) / 24
Y = torch.ones(8, 2)
LEARNING_RATE = 0.5


def trained(mode, *, iterations=1, accumulation=1, anchors=()):
    options = poptorch.Options().deviceIterations(iterations)
    options.Training.gradientAccumulation(accumulation)
    for short, long in anchors:
        options.anchorTensor(short, long, mode)
    model = Model()
    executor = poptorch.trainingModel(
        model, options, poptorch.optim.SGD(model.parameters(), lr=LEARNING_RATE, use_combined_accum=False)
    )
    executor(X, Y)
    return model, executor


def gradients(model, parts):
    """Of each micro batch's loss with the weights at the start."""
    found = []
    for x, y in zip(X.chunk(parts), Y.chunk(parts)):
        reference = Model()
        reference(x, y).backward()
        found.append((reference.fc.weight.grad, reference.fc.bias.grad))
    return found


def test_gradients_are_those_of_each_micro_batch():
    expected = [weight for weight, _ in gradients(Model, 4)]
    anchor = [("grad", "Gradient___fc.weight")]
    _, executor = trained(poptorch.OutputMode.All, accumulation=4, anchors=anchor)
    torch.testing.assert_close(executor.getAnchoredTensor("grad"), torch.cat(expected))
    _, executor = trained(poptorch.OutputMode.Final, accumulation=4, anchors=anchor)
    torch.testing.assert_close(executor.getAnchoredTensor("grad"), expected[-1])
    _, executor = trained(poptorch.OutputMode.Sum, accumulation=4, anchors=anchor)
    torch.testing.assert_close(executor.getAnchoredTensor("grad"), sum(expected))


def test_an_updated_weight_is_kept_once_an_update():
    anchors = [("new", "UpdatedVar___fc.bias"), ("old", "fc.bias")]
    model, executor = trained(poptorch.OutputMode.All, iterations=2, accumulation=2, anchors=anchors)
    new, old = executor.getAnchoredTensor("new"), executor.getAnchoredTensor("old")
    assert new.shape == (4,) and old.shape == (8,)
    first = torch.stack([bias for _, bias in gradients(Model, 4)[:2]]).mean(0)
    torch.testing.assert_close(new[:2], -LEARNING_RATE * first)
    assert torch.equal(new[2:], model.fc.bias)
    assert torch.equal(old[:4], torch.zeros(4)) and torch.equal(old[4:], new[:2].repeat(2))


def test_results_of_operations_have_names_too():
    _, executor = trained(poptorch.OutputMode.All)
    (name,) = [name for name in executor.getTensorNames() if "MatMul" in name]
    _, executor = trained(poptorch.OutputMode.All, anchors=[("hidden", name)])
    reference = Model()
    torch.testing.assert_close(executor.getAnchoredTensor("hidden"), reference.fc(X))


def test_the_models_output_mode_is_the_default():
    options = poptorch.Options().anchorTensor("w", "fc.weight")
    assert options is None
    options = poptorch.Options().deviceIterations(2)
    options.anchorTensor("w", "fc.weight")
    executor = poptorch.inferenceModel(Model(), options)
    executor(X, Y)
    assert executor.getAnchoredTensor("w").shape == (4, 3)


def test_unknown_names():
    with pytest.raises(poptorch.Error, match=r"'Gradient___nothing'.*isn't in the model"):
        trained(None, anchors=[("grad", "Gradient___nothing")])
    _, executor = trained(None)
    with pytest.raises(AssertionError, match=r"No tensor with name grad found\."):
        executor.getAnchoredTensor("grad")


def test_an_optimizers_tensors_are_what_each_micro_batch_finds():
    made = poptorch.Options().deviceIterations(3).outputMode(poptorch.OutputMode.All)
    names = {
        "moment": "Accl1___fc.bias",
        "step": "Step___fc.bias",
        "rate": "learningRate___specific___fc.bias",
        "scaling": "lossScaling_FLOAT",
    }
    for short, long in names.items():
        made.anchorTensor(short, long)
    model = Model()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.25, betas=(0.5, 0.5), loss_scaling=2.0)
    executor = poptorch.trainingModel(model, made, optimizer)
    executor(X[:6], Y[:6])
    assert executor.getAnchoredTensor("step").tolist() == [0.0, 1.0, 2.0]
    assert executor.getAnchoredTensor("rate").tolist() == [0.25] * 3
    assert executor.getAnchoredTensor("scaling").tolist() == [2.0] * 3
    moments = executor.getAnchoredTensor("moment")
    assert moments.shape == (6,) and not moments[:2].any() and moments[2:].all()
    assert {*names.values()} | {"Accl2___fc.weight"} <= {*executor.getTensorNames()}
    state = optimizer.state_dict()
    assert {*state["ipu_state"], *state["ipu_param"]} <= {*executor.getTensorNames()}


def test_only_variable_hyperparameters_are_tensors():
    names = trained(None)[1].getTensorNames()
    assert not any(name.startswith(("momentum", "eps", "lossScal", "finalLoss")) for name in names)
    inference = poptorch.inferenceModel(Model())
    inference.compile(X, Y)
    assert not any("___" in name for name in inference.getTensorNames())


@pytest.mark.parametrize("returned", ["OnePerGroup", "AllReplicas"])
def test_a_state_that_differs_between_replicas_is_each_ones(returned):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own = torch.nn.Parameter(torch.ones(2, 3))

        def forward(self, x):
            return poptorch.identity_loss((self.own * x).sum(), "sum")

    made = poptorch.Options().deviceIterations(2).replicationFactor(4)
    for short, long in (("moment", "Accl1___own"), ("step", "Step___own")):
        made.anchorTensor(short, long, poptorch.OutputMode.All)
    model = Own()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.25, betas=(0.5, 0.5))
    executor = poptorch.trainingModel(model, made, optimizer)
    kinds = poptorch.CommGroupType.Consecutive, 2, poptorch.VariableRetrievalMode[returned]
    executor.own.replicaGrouping(*kinds)
    executor(torch.arange(8.0).reshape(8, 1).expand(8, 3))
    # [iterations, replicas, 3]: half of the group's sum over all replicas, (0 + 1) / 4 and (2 + 3) / 4.
    moments = executor.getAnchoredTensor("moment").reshape(2, 4, 3)
    assert not moments[0].any()
    assert moments[1, :, 0].tolist() == [0.125, 0.125, 0.625, 0.625]
    assert executor.getAnchoredTensor("step").tolist() == [0.0] * 4 + [1.0] * 4
