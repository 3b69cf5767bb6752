"""Training steps with an IPU's numerics: loss scaling, accumulators, moments, weights, replicas.

In the model below every micro batch's gradient is a known float16, so that a step can be recomputed in
numpy's float16.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.poptorch.executor_models import options, poptorch

SIZE = 6
HALF = torch.float16


@pytest.fixture(params=["ipu-float16", "ipu-float16-fast"], autouse=True)
def as_ipu(request, monkeypatch):
    """In both the training state is an IPU's; the programs here have no float16 partials."""
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", request.param)


class Given(torch.nn.Module):
    """A weight [6] whose gradient is the input's sum over the micro batch, times the loss scale."""

    def __init__(self, start=1.0, dtype=HALF, size=SIZE):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((size,), start, dtype=dtype))

    def forward(self, x):
        return poptorch.identity_loss((self.weight * x).float().sum(), "sum")


def run(gradients, optimizer_class=None, dtype=HALF, start=1.0, counts=(1, 1, 1), change=None, **arguments):
    """(weight, optimizer state) after one call; `gradients` [D * A * R, size], micro batch by micro batch."""
    iterations, accumulation, replicas = counts
    model = Given(start, dtype, size=np.shape(gradients)[-1])
    made = options(iterations, accumulation, replicas, seed=3)
    if change is not None:
        change(made)
    optimizer = (optimizer_class or poptorch.optim.SGD)(model.parameters(), **arguments)
    executor = poptorch.trainingModel(model, made, optimizer)
    executor(torch.as_tensor(np.asarray(gradients)).to(dtype))
    return model.weight.detach().clone(), optimizer.state_dict()["ipu_state"]


def half(values):
    """To nearest; numpy has infinities where an IPU has the largest number."""
    with np.errstate(over="ignore"):
        return np.clip(np.asarray(values, np.float32).astype(np.float16), -65504, 65504)


def given(count, scale=1.0, seed=0):
    return half(np.random.default_rng(seed).normal(size=(count, SIZE)) * scale)


def test_a_loss_scale_lifts_gradients_above_underflow():
    def trained(loss_scaling):
        class Small(Given):
            def forward(self, x):
                return poptorch.identity_loss((self.weight * x * 2.0**-14).float().sum(), "sum")

        model = Small()
        optimizer = poptorch.optim.SGD(model.parameters(), lr=2.0**20, loss_scaling=loss_scaling)
        poptorch.trainingModel(model, options(), optimizer)(torch.full((1, SIZE), 2.0**-12, dtype=HALF))
        return model.weight.tolist()

    # 2^-26 is less than half of float16's smallest number.
    assert trained(1.0) == [1.0] * SIZE
    assert trained(1024.0) == [1.0 - 2.0**-6] * SIZE


def test_a_loss_scale_that_is_too_high_cuts_gradients_off():
    gradients = half([[1.0, 10.0, 100.0, -1.0, -10.0, -100.0]])
    weight, _ = run(gradients, lr=1.0, start=0.0, loss_scaling=1024.0)
    most = 65504 / 1024
    assert weight.tolist() == [-1.0, -10.0, -float(half(most)), 1.0, 10.0, float(half(most))]


def test_exceptions_stop_the_program_there():
    def stopping(made):
        made.Precision.enableFloatingPointExceptions(True)

    gradients = half([[1.0, 10.0, 100.0, -1.0, -10.0, -100.0]])
    run(gradients, lr=1.0, loss_scaling=512.0, change=stopping)
    with pytest.raises(
        poptorch.Error, match=r"floating point overflow.*enableFloatingPointExceptions"
    ) as raised:
        run(gradients, lr=1.0, loss_scaling=1024.0, change=stopping)
    assert raised.value.type == "poplar_application_runtime_error"


def test_a_float16_accumulator_is_a_running_mean():
    gradients = given(8, 30.0)
    weight, _ = run(gradients, start=0.0, counts=(1, 8, 1), lr=1.0, accum_type=HALF, loss_scaling=64.0)
    mean = np.zeros(SIZE, np.float16)
    for n, gradient in enumerate(gradients):
        scaled = half(np.float32(gradient) * 64)
        mean = half(np.float32(mean) * np.float32(n / (n + 1)) + np.float32(scaled) / np.float32(n + 1))
    assert weight.tolist() == half(-np.float32(mean) / 64).tolist()
    # float32 accumulators are exact here.
    exact, _ = run(gradients, start=0.0, counts=(1, 8, 1), lr=1.0, loss_scaling=64.0)
    assert exact.tolist() == half(-gradients.astype(np.float32).mean(axis=0)).tolist()
    assert not torch.equal(weight, exact)


@pytest.mark.parametrize("strategy", ["Post", "PostAndLoss", "Running"])
def test_where_the_mean_is_taken_decides_what_overflows(strategy):
    def with_strategy(made):
        strategies = poptorch.MeanReductionStrategy
        made.Training.setMeanAccumulationAndReplicationReductionStrategy(strategies[strategy])

    # In float16 only the combined accumulator keeps the requested strategy.
    gradients = np.full((4, SIZE), 30000.0, np.float16)
    arguments = {"lr": 2.0**-10, "use_combined_accum": True, "momentum": 0.5}
    weight, _ = run(gradients, start=0.0, counts=(1, 4, 1), change=with_strategy, **arguments)
    mean = 65504 / 4 if strategy == "Post" else 30000
    assert weight.tolist() == half([-mean * 2.0**-10] * SIZE).tolist()


def test_a_sum_is_summed_in_the_accumulators_type():
    def as_sum(made):
        made.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)

    gradients = np.concatenate([np.full((1, SIZE), 4096.0), np.full((8, SIZE), 1.0)]).astype(np.float16)
    arguments = {"lr": 2.0**-10, "start": 0.0, "counts": (1, 9, 1), "change": as_sum}
    exact, _ = run(gradients, **arguments)
    assert exact.tolist() == [-half(4104 * 2.0**-10)] * SIZE
    narrow, _ = run(gradients, accum_type=HALF, **arguments)
    assert narrow.tolist() == [-4.0] * SIZE  # 4096 + 1 is 4096, eight times


@pytest.mark.parametrize("second", [torch.float32, HALF])
@pytest.mark.parametrize("first", [torch.float32, HALF])
def test_moments_have_their_types(first, second):
    gradients = given(3, 0.01)
    lr, b1, b2, eps, scale = 2.0**-6, 0.75, 0.9375, 2.0**-10, 256.0
    weight, state = run(
        gradients,
        poptorch.optim.Adam,
        counts=(3, 1, 1),
        lr=lr,
        betas=(b1, b2),
        eps=eps,
        loss_scaling=scale,
        first_order_momentum_accum_type=first,
        second_order_momentum_accum_type=second,
    )
    w = np.ones(SIZE, np.float16)
    m, v = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    for t, gradient in enumerate(gradients, start=1):
        g = half(np.float32(gradient) * scale).astype(np.float32) / np.float32(scale)
        if HALF in (first, second):
            g = half(g).astype(np.float32)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = half(w.astype(np.float32) - lr * u)
        m = half(m).astype(np.float32) if first is HALF else np.float32(m)
        v = half(v).astype(np.float32) if second is HALF else np.float32(v)
    assert state["Accl1___weight"].dtype is first and state["Accl2___weight"].dtype is second
    tolerance = {torch.float32: 1e-6, HALF: 1e-3}
    np.testing.assert_allclose(state["Accl1___weight"].float(), m, rtol=tolerance[first], atol=1e-9)
    np.testing.assert_allclose(state["Accl2___weight"].float(), v, rtol=tolerance[second], atol=6e-8)
    np.testing.assert_allclose(weight.float(), w.astype(np.float32), rtol=0, atol=2.0**-11)


def test_velocities_have_their_types_and_scales():
    gradients = given(1, 2.0**-16)  # below float16's normal numbers
    separate = {"lr": 1.0, "start": 0.0, "momentum": 0.5, "loss_scaling": 2.0**10}
    _, state = run(gradients, velocity_accum_type=HALF, use_combined_accum=False, **separate)
    assert state["Accl1___weight"].dtype is HALF
    assert state["Accl1___weight"].tolist() == gradients[0].tolist()
    _, state = run(gradients, use_combined_accum=True, velocity_scaling=2.0**8, **separate)
    assert state["Accl___weight"].dtype is HALF
    assert state["Accl___weight"].tolist() == (gradients[0] * np.float16(2**8)).tolist()


STEPS = 20


def stochastically(made):
    made.Precision.enableStochasticRounding(True)


def test_small_updates_are_lost_to_nearest_and_kept_by_chance():
    """0.75 - lr * 1, STEPS times, with an lr of a tenth of the distance between float16's numbers there."""
    size, ulp = 1 << 14, 2.0**-11
    lr = ulp / 10
    arguments = {"lr": lr, "start": 0.75, "counts": (STEPS, 1, 1)}
    gradients = np.ones((STEPS, size), np.float16)
    nearest, _ = run(gradients, **arguments)
    assert set(nearest.tolist()) == {0.75}
    by_chance, _ = run(gradients, change=stochastically, **arguments)
    # Each step adds a Bernoulli(1/10) number of ulps, independent of the others.
    sigma = ulp * math.sqrt(STEPS * 0.1 * 0.9 / size)
    assert abs(float(by_chance.double().mean()) - (0.75 - STEPS * lr)) <= 3 * sigma
    again, _ = run(gradients, change=stochastically, **arguments)
    assert torch.equal(again, by_chance)


def test_accumulators_are_rounded_by_chance_too():
    size = 1 << 14
    gradients = np.concatenate([np.full((1, size), 1.0), np.full((7, size), 1 + 2.0**-10)]).astype(np.float16)
    arguments = {"lr": 1.0, "start": 0.0, "counts": (1, 8, 1), "accum_type": HALF, "dtype": torch.float32}
    by_chance, _ = run(gradients, change=stochastically, **arguments)
    exact = gradients.astype(np.float64).mean()
    # A rounding error of the running mean of n counts n / 8 at the end; its sigma is at most half an ulp.
    sigma = math.sqrt(sum((n / 8 * 2.0**-11) ** 2 for n in range(1, 9)) / size)
    assert abs(-float(by_chance.double().mean()) - exact) <= 3 * sigma
    assert len(by_chance.unique()) == 2


@pytest.mark.parametrize("half_accumulators", [False, True])
def test_replicas_and_accumulation_with_float32_weights(half_accumulators):
    """Values that are exact in every type don't depend on the split."""
    gradients = half(np.random.default_rng(1).integers(-8, 9, size=(8, SIZE)) * 8.0)
    expected = -gradients.astype(np.float32).mean(axis=0)
    types = {"accum_type": HALF} if half_accumulators else {}
    for counts in ((1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 8, 1)):
        weight, _ = run(gradients, dtype=torch.float32, start=0.0, counts=counts, lr=1.0, **types)
        np.testing.assert_allclose(weight, expected, rtol=0, atol=0.04 if half_accumulators else 0)


def test_replicas_are_summed_exactly_before_they_are_rounded():
    """In float32, 60000 + 2^-20 would be 60000; the order of replicas doesn't change the sum."""
    parts = [60000.0, 2.0**-20, -60000.0, 0.0]
    for order in (parts, parts[::-1], [parts[i] for i in (0, 2, 1, 3)]):
        gradients = np.repeat(half(order)[:, None], SIZE, axis=1)
        weight, _ = run(gradients, start=0.0, counts=(1, 1, 4), lr=2.0**20)
        assert weight.tolist() == [-0.25] * SIZE


@pytest.mark.parametrize("second", [torch.float32, HALF])
def test_float16_moments_make_the_loss_scale_go_in_float16(second):
    """A mean of 2^-26 underflows in float16: a float16 moment loses it when it is unscaled."""
    gradients = np.zeros((4, SIZE), np.float16)
    gradients[0] = 2.0**-24
    weight, _ = run(
        gradients,
        poptorch.optim.Adam,
        counts=(1, 4, 1),
        lr=0.5,
        eps=1e-30,
        loss_scaling=1024.0,
        accum_type=HALF,
        second_order_momentum_accum_type=second,
        start=1.0,
    )
    assert weight.tolist() == [1.0 if second is HALF else 0.5] * SIZE


def test_a_weight_that_no_loss_reaches_stays():
    class Two(Given):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.ones(3, dtype=HALF))

    model = Two()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=1.0, accum_type=HALF, weight_decay=0.5)
    made = options(accumulation=2, replicas=2, seed=1)
    poptorch.trainingModel(model, made, optimizer)(torch.ones(4, SIZE, dtype=HALF))
    assert model.unused.tolist() == [1.0] * 3
    assert model.weight.tolist() != [1.0] * SIZE


def test_a_float32_program_without_choices_computes_as_in_float32(monkeypatch):
    """Only operations of float16 tensors compute in float16."""
    from tests.poptorch.executor_models import Classifier, batch, clones, same

    def trained():
        model = Classifier()
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, loss_scaling=1024.0)
        made = options(2, 2, 1, seed=1)
        made.Precision.setPartialsType(torch.half)
        stochastically(made)
        executor = poptorch.trainingModel(model, made, optimizer)
        for seed in range(3):
            executor(*batch(8, seed))
        return clones(model)

    as_ipu = trained()
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "float32")
    in_float32 = trained()
    # A loss scale is a power of two; only the order of sums differs.
    for name, weight in in_float32.items():
        torch.testing.assert_close(as_ipu[name], weight, rtol=1e-6, atol=1e-6)
    assert not same(as_ipu, clones(Classifier()))


def automatically(made):
    made.Training.setAutomaticLossScaling(True)


def test_an_automatic_loss_scale_follows_the_gradients():
    """It doubles while no gradient is above an eighth of the largest float16, then alternates."""
    gradients = np.full((20, SIZE), 1.0, np.float16)
    weight, state = run(
        gradients, start=0.0, counts=(20, 1, 1), lr=2.0**-6, loss_scaling=4.0, change=automatically
    )
    # 4, 8, ..., 4096, 8192 > 8188, 4096, 8192, ...: after 20 updates the next scale is 4096 or 8192.
    scale = 4.0
    for _ in range(20):
        scale = scale / 2 if scale > 8188 else scale * 2
    assert state["lossScaleUpdateFactor"].item() == scale / 4.0
    # The scale doesn't change the gradient.
    assert weight.tolist() == [-20 * 2.0**-6] * SIZE
    assert "lossScaleUpdateFactor" not in run(gradients, counts=(20, 1, 1), lr=1.0, start=0.0)[1]


def test_an_automatic_loss_scale_has_a_limit_and_is_part_of_the_state():
    model = Given()
    made = options(2)
    automatically(made)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, made, optimizer)
    for _ in range(10):
        executor(torch.full((2, SIZE), 2.0**-10, dtype=HALF))
    state = optimizer.state_dict()
    assert state["ipu_state"]["lossScaleUpdateFactor"].item() == 2.0**15
    other = Given()
    resumed = poptorch.optim.AdamW(other.parameters(), lr=0.1)
    resumed.load_state_dict(state)
    made = options(2)
    automatically(made)
    poptorch.trainingModel(other, made, resumed).compile(torch.ones(2, SIZE, dtype=HALF))
    assert resumed.state_dict()["ipu_state"]["lossScaleUpdateFactor"].item() == 2.0**15


def test_an_unknown_precision_is_refused(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "float-16")
    message = r"IPU_SIMULATOR_PRECISION is 'float-16'.*'ipu-float16' .all: .*, float32, float32-onednn, ipu"
    with pytest.raises(poptorch.Error, match=message):
        run(given(1), lr=1.0)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_the_tanh_form_on_an_ipu_only(approximate, monkeypatch):
    """Whatever the program asks for; the default precision keeps PyTorch's."""

    class Gelu(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.gelu(x, approximate=approximate)

    x = torch.linspace(-4, 4, 101)
    for precision, form in ((None, "tanh"), ("float32", approximate)):
        if precision is not None:
            monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
        executor = poptorch.inferenceModel(Gelu())
        for _ in range(2):
            expected = torch.nn.functional.gelu(x, approximate=form)
            torch.testing.assert_close(executor(x), expected, rtol=1e-5, atol=1e-6)
        expected = torch.nn.functional.gelu(x.half().float(), approximate=form).half()
        torch.testing.assert_close(poptorch.inferenceModel(Gelu())(x.half()), expected, rtol=1e-3, atol=2e-5)


def test_fast_emulation_has_the_same_results_but_for_partials(monkeypatch):
    """Products without bias in float32 partials: the same weights and moments, bit for bit."""

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = torch.nn.Linear(40, 30, bias=False)
            self.second = torch.nn.Linear(30, 5, bias=False)

        def forward(self, x):
            squares = self.second(torch.relu(self.first(x))).float().square()
            return poptorch.identity_loss(squares.sum(), "sum")

    def trained(precision, half_partials=False):
        monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
        made, model = options(2, 2, seed=3), Layers().half()
        made.Precision.enableStochasticRounding(True)
        made.Precision.setPartialsType(HALF if half_partials else torch.float32)
        types = {"accum_type": HALF, "first_order_momentum_accum_type": HALF}
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=1e-2, loss_scaling=8.0, **types)
        executor = poptorch.trainingModel(model, made, optimizer)
        for step in range(2):
            executor(torch.randn(8, 40, generator=torch.Generator().manual_seed(step)).half())
        return {**model.state_dict(), **optimizer.state_dict()["ipu_state"]}

    full, fast = trained("ipu-float16"), trained("ipu-float16-fast")
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in full.items()} == {
        name: (tensor.dtype, tensor.tolist()) for name, tensor in fast.items()
    }
    partials = trained("ipu-float16", half_partials=True)["first.weight"]
    assert not partials.equal(full["first.weight"])
    assert trained("ipu-float16-fast", half_partials=True)["first.weight"].equal(full["first.weight"])


def test_fast_emulation_saturates_everywhere_and_rounds_a_bias_once(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "ipu-float16-fast")

    class Sums(torch.nn.Module):
        def forward(self, x, mask, one):
            sums = (x + x, x * 2, x.clone().add_(x), (x.float() * 2).half(), x.sum(), x[None] @ x[:, None])
            return (*sums, mask + x, torch.addmm(one, one, one))

    x, mask = torch.tensor([60000.0, 60000.0]).half(), torch.tensor([-torch.inf, 0.0]).half()
    one = torch.full((1, 1), 1 + 2.0**-10).half()
    executor = poptorch.inferenceModel(Sums())
    for _ in range(2):
        *large, masked, biased = executor(x, mask, one)
        assert all(tensor.eq(65504).all() for tensor in large)
        assert masked.tolist() == [-torch.inf, 60000]  # which was infinite before
        assert biased.equal((one.double() ** 2 + one.double()).half())
