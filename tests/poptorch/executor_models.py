"""Small models and data that the executor's tests share."""

from __future__ import annotations

import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch
# Threads cost more than they save on tensors as small as these.
torch.set_num_threads(1)

FEATURES, CLASSES = 4, 3


class Classifier(torch.nn.Module):
    """Two linear layers; returns (logits [b, 3], mean loss 0-d)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Linear(FEATURES, 5)
        self.second = torch.nn.Linear(5, CLASSES)
        self.loss = torch.nn.CrossEntropyLoss()
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def forward(self, x, y=None):
        logits = self.second(torch.tanh(self.first(x)))
        if y is None:
            return logits
        return logits, self.loss(logits, y)


class Linear(torch.nn.Module):
    """One linear layer and its mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(FEATURES, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(1.0, FEATURES + 1) / 10)
            self.layer.bias.zero_()

    def forward(self, x, y):
        out = self.layer(x)
        return out, torch.nn.functional.mse_loss(out, y)


def batch(size: int, seed: int = 0):
    """(x [size, 4] float32, y [size] int64)."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, FEATURES, generator=generator),
        torch.randint(0, CLASSES, (size,), generator=generator),
    )


def options(
    iterations: int = 1, accumulation: int = 1, replicas: int = 1, mode=None, period: int = 1, seed=None
):
    """Options with these counts."""
    made = poptorch.Options().deviceIterations(iterations).replicationFactor(replicas)
    made.Training.gradientAccumulation(accumulation)
    if mode is not None:
        made.outputMode(mode, period)
    if seed is not None:
        made.createOrSet(random_seed=seed)
    return made


def clones(module: torch.nn.Module) -> dict:
    """Copies of all weights and buffers by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
