"""float16 training doesn't depend on the replicas' processes, and resumes exactly."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import CLASSES, FEATURES, clones, options, poptorch, same
from tests.poptorch.in_processes import train_in_processes

pytestmark = pytest.mark.slow

REPLICAS, ACCUMULATION, STEPS, MICRO_BATCH = 4, 2, 3, 2


class HalfClassifier(torch.nn.Module):
    """float16, with dropout; returns the mean loss, 0-d float32."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = torch.nn.Linear(FEATURES, 64)
        self.second = torch.nn.Linear(64, CLASSES)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
        self.half()

    def forward(self, x, y):
        hidden = torch.nn.functional.dropout(torch.tanh(self.first(x)), 0.3)
        return torch.nn.functional.cross_entropy(self.second(hidden).float(), y)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    size = ACCUMULATION * REPLICAS * MICRO_BATCH
    x = torch.randn(size, FEATURES, generator=generator).half()
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def made_options(replicas):
    made = options(accumulation=ACCUMULATION, replicas=replicas, seed=11)
    made.Precision.enableStochasticRounding(True)
    made.Precision.setPartialsType(torch.half)
    return made


def made_optimizer(model):
    half = torch.float16
    return poptorch.optim.LAMB(
        model.parameters(),
        lr=0.01,
        loss_scaling=256.0,
        accum_type=half,
        first_order_momentum_accum_type=half,
    )


def train(rank: int, processes: int) -> dict:
    """Weights after STEPS updates of one of `processes` processes."""
    torch.set_num_threads(1)
    replicas = REPLICAS // processes
    made = made_options(replicas)
    made.Distributed.configureProcessId(rank, processes)
    model = HalfClassifier()
    executor = poptorch.trainingModel(model, made, made_optimizer(model))
    for step in range(STEPS):
        # [A, R, b]: this process's replicas.
        mine = slice(rank * replicas, (rank + 1) * replicas)
        shares = [t.unflatten(0, (ACCUMULATION, REPLICAS, -1))[:, mine].flatten(0, 2) for t in batch(step)]
        executor(*shares)
    return clones(model)


def test_replicas_in_processes_give_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "ipu-float16")
    results = train_in_processes(__name__, 2, tmp_path)
    expected = train(0, 1)
    assert not same(expected, clones(HalfClassifier()))
    for weights in results:
        assert same(weights, expected)


def test_a_resumed_executor_makes_the_same_updates(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "ipu-float16")
    model = HalfClassifier()
    optimizer = made_optimizer(model)
    executor = poptorch.trainingModel(model, made_options(REPLICAS), optimizer)
    for step in range(2):
        executor(*batch(step))
    weights, state, random_state = clones(model), optimizer.state_dict(), executor.rng_state
    moments = [t.dtype for name, t in state["ipu_state"].items() if name.startswith("Accl1")]
    assert set(moments) == {torch.float16}
    for step in range(2, 4):
        executor(*batch(step))

    resumed = HalfClassifier()
    resumed.load_state_dict(weights)
    resumed_optimizer = made_optimizer(resumed)
    resumed_optimizer.load_state_dict(state)
    again = poptorch.trainingModel(resumed, made_options(REPLICAS), resumed_optimizer)
    again.compile(*batch(2))
    again.rng_state = random_state
    for step in range(2, 4):
        again(*batch(step))
    assert same(clones(resumed), clones(model))
    assert same(resumed_optimizer.state_dict()["ipu_state"], optimizer.state_dict()["ipu_state"])


@pytest.mark.parametrize("mean", [True, False])
def test_inference_computes_in_the_same_way(monkeypatch, mean):
    """Training's loss before the first update is inference's."""
    losses = {}
    for precision in ("float32", "ipu-float16"):
        monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
        model = HalfClassifier().eval()
        model.forward = lambda x, y, model=model: torch.nn.functional.cross_entropy(
            model.second(torch.tanh(model.first(x))).float(), y
        )
        made = options(mode=poptorch.OutputMode.All)
        made.Precision.setPartialsType(torch.half if mean else torch.float)
        x, y = batch(0)
        losses[precision] = poptorch.inferenceModel(model, made)(x, y)
        trained = poptorch.trainingModel(model, made, made_optimizer(model))
        assert torch.equal(trained(x, y), losses[precision])
    torch.testing.assert_close(losses["float32"], losses["ipu-float16"], rtol=2e-3, atol=0)
