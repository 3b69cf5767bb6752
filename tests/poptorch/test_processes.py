"""Replicas spread over processes train as replicas in one process do."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import CLASSES, FEATURES, batch, options, poptorch
from tests.poptorch.in_processes import train_in_processes

pytestmark = pytest.mark.slow

REPLICAS, ACCUMULATION, STEPS, MICRO_BATCH = 4, 2, 3, 2


class _WithDropout(torch.nn.Module):
    """Returns (dropout's mask [b, 64], mean loss 0-d)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = torch.nn.Linear(FEATURES, 64)
        self.second = torch.nn.Linear(64, CLASSES)
        self.register_buffer("ones", torch.ones(64))
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / 4)

    def forward(self, x, y):
        mask = torch.nn.functional.dropout(self.ones.expand(len(x), -1), 0.3)
        logits = self.second(torch.tanh(self.first(x)) * mask)
        return mask, torch.nn.functional.cross_entropy(logits, y)


def train(rank: int, processes: int) -> tuple[dict, torch.Tensor, float]:
    """Of one of `processes` processes: weights after STEPS updates, last masks [replicas here, b, 64] and the
    factor of a second training, with automatic loss scaling, which gives the same weights.
    """
    weights, masks, _ = _train(rank, processes, scaling=False)
    scaled, _, state = _train(rank, processes, scaling=True)
    for name, weight in weights.items():  # scaling needs each micro batch's gradients, so it isn't merged
        torch.testing.assert_close(scaled[name], weight, rtol=0, atol=1e-6)
    return weights, masks, state["lossScaleUpdateFactor"].item()


def _train(rank: int, processes: int, scaling: bool) -> tuple[dict, torch.Tensor, dict]:
    torch.set_num_threads(1)
    replicas = REPLICAS // processes
    made = options(accumulation=ACCUMULATION, replicas=replicas, seed=11)
    made.Distributed.configureProcessId(rank, processes)
    made.Training.setAutomaticLossScaling(scaling)
    model = _WithDropout()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.05, max_grad_norm=0.5, loss_scaling=2.0**14)
    executor = poptorch.trainingModel(model, made, optimizer)
    for step in range(STEPS):
        x, y = batch(ACCUMULATION * REPLICAS * MICRO_BATCH, seed=step)
        # [A, R, b]: this process's replicas.
        mine = slice(rank * replicas, (rank + 1) * replicas)
        shares = [t.unflatten(0, (ACCUMULATION, REPLICAS, -1))[:, mine].flatten(0, 2) for t in (x, y)]
        masks, _ = executor(*shares)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return weights, masks.unflatten(0, (replicas, MICRO_BATCH)), optimizer.state_dict()["ipu_state"]


def test_replicas_in_processes_give_the_weights_of_replicas_in_one(tmp_path):
    results = train_in_processes(__name__, 2, tmp_path)
    expected, expected_masks, factor = train(0, 1)
    assert factor < 1  # some gradients are too large
    assert [other for _, _, other in results] == [factor] * 2
    for weights, _, _ in results:
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6)
    # Random numbers depend on the replica, not on its process.
    assert torch.equal(torch.cat([masks for _, masks, _ in results]), expected_masks)
    assert len({mask.numpy().tobytes() for mask in expected_masks}) == REPLICAS
