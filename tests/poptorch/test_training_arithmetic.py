"""A step against a plain PyTorch loop: micro batches, accumulation, replicas, optimizers, output modes.

The loop below shares no code with the executor: it iterates over the combined batch, sums gradients from
torch.autograd.grad, and updates one tensor at a time by explicit formulas in float64.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.poptorch.executor_models import Classifier, batch, options, poptorch

pytestmark = pytest.mark.slow

CALLS = 3
OPTIMIZERS = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02},
    "nesterov": {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True},
    "adam": {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
    "adamw": {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
    "lamb": {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
    "rmsprop": {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "weight_decay": 0.1, "centered": True},
}
CLASSES = {
    "sgd": poptorch.optim.SGD,
    "nesterov": poptorch.optim.SGD,
    "adam": poptorch.optim.Adam,
    "adamw": poptorch.optim.AdamW,
    "lamb": poptorch.optim.LAMB,
    "rmsprop": poptorch.optim.RMSprop,
}


def updated(name, w, g, state, p):
    """One tensor's new value; `state` holds its moments between steps."""
    t = state["t"] = state.get("t", 0) + 1
    decay = p["weight_decay"]
    if name in ("sgd", "nesterov"):
        g = g + decay * w
        v = state["v"] = p["momentum"] * state.get("v", 0.0) + (1 - p.get("dampening", 0.0)) * g
        return w - p["lr"] * (g + p["momentum"] * v if name == "nesterov" else v)
    if name == "rmsprop":
        g = g + decay * w
        state["v"] = p["alpha"] * state.get("v", 0.0) + (1 - p["alpha"]) * g**2
        state["a"] = p["alpha"] * state.get("a", 0.0) + (1 - p["alpha"]) * g
        quotient = g / ((state["v"] - state["a"] ** 2).sqrt() + 1e-8)
        state["b"] = p["momentum"] * state.get("b", 0.0) + quotient
        return w - p["lr"] * state["b"]
    b1, b2 = p["betas"]
    if name == "adam":
        g = g + decay * w
    m = state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    v = state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g**2
    u = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + p["eps"])
    if name == "adam":
        return w - p["lr"] * u
    u = u + decay * w
    return w - p["lr"] * u * (w.norm() / u.norm() if name == "lamb" else 1.0)


def plain_loop(name, counts, mean, batches):
    """([outputs of each micro batch in order] for each call, final weights)."""
    iterations, accumulation, replicas, _ = counts
    model = Classifier().double()
    weights = list(model.parameters())
    states = [{} for _ in weights]
    calls = []
    for x, y in batches:
        slices = list(
            zip(
                x.double().chunk(iterations * accumulation * replicas),
                y.chunk(iterations * accumulation * replicas),
            )
        )
        outputs = []
        per_update = accumulation * replicas
        for update in range(iterations):
            totals = [torch.zeros_like(w) for w in weights]
            for micro_x, micro_y in slices[update * per_update : (update + 1) * per_update]:
                logits, loss = model(micro_x, micro_y)
                outputs.append((logits.detach(), loss.detach()))
                for total, gradient in zip(totals, torch.autograd.grad(loss, weights)):
                    total += gradient
            with torch.no_grad():
                for w, total, state in zip(weights, totals, states):
                    w.copy_(updated(name, w, total / per_update if mean else total, state, OPTIMIZERS[name]))
        calls.append(outputs)
    return calls, {key: value.detach() for key, value in model.named_parameters()}


def returned(outputs, counts, mode, period):
    """The micro batches of one call that an output mode returns, for one of the outputs."""
    iterations, accumulation, replicas, _ = counts
    by_place = {
        place: outputs[i]
        for i, place in enumerate(itertools.product(range(iterations), range(accumulation), range(replicas)))
    }
    if mode == "All":
        kept = list(by_place.values())
    elif mode == "EveryN":
        kept = [value for (d, _, _), value in by_place.items() if d % period == period - 1]
    elif mode == "Final":
        kept = [by_place[iterations - 1, accumulation - 1, r] for r in range(replicas)]
    else:
        kept = [sum(v for (_, _, r), v in by_place.items() if r == replica) for replica in range(replicas)]
    if kept[0].dim():
        return torch.cat(kept)
    return torch.stack(kept) if len(kept) > 1 else kept[0]


def check(name, counts, mean=True, mode="Final", period=1):
    iterations, accumulation, replicas, micro = counts
    size = iterations * accumulation * replicas * micro
    batches = [batch(size, seed) for seed in range(CALLS)]
    model = Classifier()
    made = options(iterations, accumulation, replicas, poptorch.OutputMode[mode], period)
    made.Training.accumulationAndReplicationReductionType(
        poptorch.ReductionType.Mean if mean else poptorch.ReductionType.Sum
    )
    arguments = dict(OPTIMIZERS[name])
    optimizer = CLASSES[name](model.parameters(), **arguments)
    executor = poptorch.trainingModel(model, made, optimizer)
    expected_calls, expected_weights = plain_loop(name, counts, mean, batches)
    for (x, y), expected in zip(batches, expected_calls):
        for i, tensor in enumerate(executor(x, y)):
            wanted = returned([outputs[i] for outputs in expected], counts, mode, period).float()
            assert tensor.shape == wanted.shape
            torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-5)
    for key, value in model.named_parameters():
        torch.testing.assert_close(
            value.detach().clone(), expected_weights[key].float(), rtol=1e-6, atol=1e-6
        )


COUNTS = list(itertools.product((1, 2), (1, 2, 4), (1, 2), (1, 2, 3)))  # D, A, R, b


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_split_makes_the_updates_of_a_plain_loop(name):
    for counts in COUNTS:
        check(name, counts)


@pytest.mark.parametrize("name", ["sgd", "adam", "lamb"])
def test_gradients_are_summed_without_a_division_where_asked(name):
    for counts in COUNTS[::5]:
        check(name, counts, mean=False)


@pytest.mark.parametrize(
    ("mode", "period"), [("All", 1), ("EveryN", 1), ("EveryN", 2), ("Final", 1), ("Sum", 1)]
)
def test_every_output_mode_returns_its_micro_batches_in_order(mode, period):
    for counts in COUNTS:
        if counts[0] >= period:
            check("sgd", counts, mode=mode, period=period)


def test_how_a_mean_is_split_does_not_matter():
    """With a mean of mean losses, accumulation, replicas and micro batch size are interchangeable."""
    x, y = batch(8)
    results = []
    for accumulation, replicas in ((1, 1), (8, 1), (1, 8), (2, 4), (4, 1)):
        model = Classifier()
        made = options(accumulation=accumulation, replicas=replicas)
        executor = poptorch.trainingModel(model, made, poptorch.optim.SGD(model.parameters(), lr=0.5))
        executor(x, y)
        results.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-6, atol=1e-6)


def test_replicas_of_an_input_group_read_the_same_data():
    x, y = batch(4)
    grouped, plain = Classifier(), Classifier()
    made = options(replicas=4, mode=poptorch.OutputMode.All)
    made.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    both = poptorch.trainingModel(grouped, made, poptorch.optim.SGD(grouped.parameters(), lr=0.5))
    made = options(replicas=2, mode=poptorch.OutputMode.All)
    once = poptorch.trainingModel(plain, made, poptorch.optim.SGD(plain.parameters(), lr=0.5))
    assert torch.equal(both(x, y)[1], once(x, y)[1].repeat_interleave(2))
    for a, b in zip(grouped.parameters(), plain.parameters()):
        torch.testing.assert_close(a.detach().clone(), b.detach().clone(), rtol=1e-6, atol=1e-6)
