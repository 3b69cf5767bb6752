"""Parameter groups as published, and clipping that doesn't depend on how a batch is split."""

import dataclasses

import pytest
import torch

import config
import ipu
import model as models
from training import OptimizerPlan, build_optimizer
from training.optimizer import parameter_groups, set_learning_rate

ipu.select_device("simulator")

PLAN = dataclasses.replace(
    config.load("test_bert").section(OptimizerPlan),
    optimizer="sgd",
    learning_rate=0.5,
    momentum=0.9,
    adam_beta1=0.9,
    adam_beta2=0.999,
    optimizer_eps=1e-6,
    weight_decay=0.01,
    max_grad_norm=None,
    loss_scaling=128.0,
    precision="float16",
    enable_half_first_order_momentum=False,
    reduction="mean",
    gradient_accumulation=1,
    replication_factor=1,
)


def groupbert():
    return models.PretrainingModel(
        models.ModelConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            norm="pre",
            convolution=True,
            feed_forward="grouped_projected",
        )
    )


def test_every_parameter_stands_in_one_group_by_its_kind():
    model = groupbert()
    decayed, norms, biases = parameter_groups(model, 0.01, lamb=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [id(parameter) for group in (decayed, norms, biases) for parameter in group["params"]]
    assert sorted(grouped) == sorted(names)
    assert all(names[id(parameter)].endswith("bias") for parameter in biases["params"])
    assert all("norm" in names[id(parameter)] for parameter in norms["params"])
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert [group["weight_decay"] for group in (decayed, norms, biases)] == [0.01, 0.0, 0.0]
    assert biases["max_weight_norm"] == 0
    assert "max_weight_norm" not in decayed and "max_weight_norm" not in norms


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "lamb_no_bias_correction"])
def test_each_optimizer_trains_and_follows_its_learning_rate(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = build_optimizer(model, dataclasses.replace(PLAN, optimizer=name))
    before = model.weight.detach().clone()
    executor = ipu.poptorch.trainingModel(Loss(model), optimizer=optimizer)
    set_learning_rate(optimizer, 0.0)
    executor.setOptimizer(optimizer)
    executor(torch.ones(2, 3))
    assert torch.equal(model.weight, before)
    set_learning_rate(optimizer, 0.1)
    executor.setOptimizer(optimizer)
    executor(torch.ones(2, 3))
    assert not torch.equal(model.weight, before)
    executor.destroy()


class Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x):
        return ipu.poptorch.identity_loss(self.inner(x).pow(2).mean(), reduction="none")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("accumulation", "replicas"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_clipping_is_by_the_norm_of_the_mean_gradient(reduction, accumulation, replicas):
    torch.manual_seed(0)
    model, reference = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    reference.load_state_dict(model.state_dict())
    threshold, batch = 0.05, torch.randn(8, 5)
    plan = dataclasses.replace(
        PLAN,
        optimizer="adam",
        weight_decay=0.0,
        max_grad_norm=threshold,
        reduction=reduction,
        gradient_accumulation=accumulation,
        replication_factor=replicas,
    )
    poptorch = ipu.poptorch
    options = poptorch.Options()
    options.replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    kinds = {"mean": poptorch.ReductionType.Mean, "sum": poptorch.ReductionType.Sum}
    options.Training.accumulationAndReplicationReductionType(kinds[reduction])
    optimizer = build_optimizer(model, plan)
    executor = poptorch.trainingModel(Loss(model), options, optimizer)
    executor(batch)
    reference(batch).pow(2).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), threshold)
    assert norm > 2 * threshold
    # With "sum" the device's gradient is the mean times the number of micro batches.
    number = accumulation * replicas if reduction == "sum" else 1
    state = optimizer.state_dict()["ipu_state"]
    for name, weight in reference.named_parameters():
        moment = state[f"Accl1___inner.{name}"] / number  # after the first step
        torch.testing.assert_close(moment, (1 - plan.adam_beta1) * weight.grad, rtol=0, atol=1e-7)
    executor.destroy()
