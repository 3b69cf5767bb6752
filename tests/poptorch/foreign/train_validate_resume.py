"""Trains, validates after each epoch and writes checkpoints; then resumes as if never interrupted."""

import argparse
from pathlib import Path

import poptorch
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
folder = parser.parse_args().folder

data = torch.Generator().manual_seed(6)
X, Y = torch.randn(96, 5, generator=data), torch.randn(96, 1, generator=data)
Y = X[:, :1] - X[:, 1:2].tanh() + 0.1 * Y


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x, y):
        prediction = self.layers(x)
        return prediction, nn.functional.mse_loss(prediction, y)


def train(epochs, checkpoint=None):
    """(weights, validation losses) after these epochs, from the start or from a checkpoint."""
    torch.manual_seed(7)
    model = Network()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["weights"])
    options = poptorch.Options()
    options.Training.gradientAccumulation(4)
    training = poptorch.trainingModel(model, options, optimizer)
    validation = poptorch.inferenceModel(model)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        training.setOptimizer(optimizer)
    validation_losses = []
    for epoch in epochs:
        for start in range(0, 64, 32):
            training(X[start : start + 32], Y[start : start + 32])
        prediction, loss = validation(X[64:], Y[64:])
        assert prediction.shape == (32, 1)
        validation_losses.append(loss.item())
        state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"epoch{epoch}.pt")
    training.detachFromDevice()
    return {name: weight.clone() for name, weight in model.state_dict().items()}, validation_losses


whole, losses = train(range(12))
resumed, again = train(range(6, 12), torch.load(folder / "epoch5.pt"))
print(f"validation loss {losses[0]:.4f} -> {losses[-1]:.4f}")
assert losses[-1] < losses[0] and losses[6:] == again
assert all(torch.equal(whole[name], resumed[name]) for name in whole)
