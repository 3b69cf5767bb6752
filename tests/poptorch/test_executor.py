"""Compiling and calling: losses, frozen state, random numbers, outputs, float16."""

from __future__ import annotations

import collections
import datetime
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F

from tests.poptorch.executor_models import Classifier, batch, clones, options, poptorch, same


def training(model, made=None, lr=0.1):
    return poptorch.trainingModel(model, made, poptorch.optim.SGD(model.parameters(), lr=lr))


class Wrapper(torch.nn.Module):
    """A model that calls a function of (layer output, labels)."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.function = function

    def forward(self, x, y):
        return self.function(self.layer(x), y)


# ---- compiling


def test_compiling_moves_nothing():
    class Lossy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))

        def forward(self, x):
            x += 1  # in place
            return F.mse_loss(self.body(x), torch.zeros_like(x))

    model = Lossy()
    before = clones(model)
    executor = training(model)
    x, _ = batch(4)
    x_before, host_before = x.clone(), torch.get_rng_state()
    device_before = executor.rng_state
    assert not executor.isCompiled() and not executor.isAttachedToDevice()
    executor.compile(x)
    assert executor.isCompiled() and executor.isAttachedToDevice()
    assert torch.equal(x, x_before) and torch.equal(torch.get_rng_state(), host_before)
    assert executor.rng_state == device_before
    executor.copyWeightsToHost()
    assert same(clones(model), before)
    executor(x)
    assert torch.equal(x, x_before + 1)  # in-place changes by a run reach the host
    assert torch.equal(torch.get_rng_state(), host_before)


def test_compiling_first_changes_no_result():
    x, y = batch(4)
    losses = []
    for compile_first in (False, True):
        torch.manual_seed(0)
        model = Wrapper(lambda out, y: F.cross_entropy(F.dropout(out, 0.5), y))
        executor = training(model, options(seed=3))
        if compile_first:
            executor.compile(x, y)
        losses.append([float(executor(x, y)) for _ in range(3)])
    assert losses[0] == losses[1]


def test_the_model_runs_on_the_ipu_during_every_forward():
    seen = []

    def forward(out, y):
        seen.append(poptorch.isRunningOnIpu())
        return F.cross_entropy(out, y)

    model = Wrapper(forward)
    executor = training(model)
    executor(*batch(3))
    assert set(seen) == {True}
    model(*batch(3))
    assert seen[-1] is False


def test_training_flags_are_those_of_compilation():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x) if self.training else -x

    model = Dropping()
    x = torch.ones(64, 4)
    executor = poptorch.inferenceModel(model)
    model.eval()  # after the wrapping: reaches the shared submodule, not the copy's own flag
    assert torch.equal(executor(x), x)
    model.train()
    assert torch.equal(executor(x), x)
    assert model.training and model.drop.training


# ---- losses


@pytest.mark.parametrize(
    "function",
    [
        lambda out, y: F.cross_entropy(out, y),
        lambda out, y: (out, F.cross_entropy(out, y)),
        lambda out, y: {"logits": out, "nested": [F.cross_entropy(out, y), None]},
        lambda out, y: (F.cross_entropy(out, y), out)[1],
        lambda out, y: poptorch.identity_loss(F.cross_entropy(out, y, reduction="none"), "mean"),
        lambda out, y: (poptorch.identity_loss(F.cross_entropy(out, y), "none") * 1000, out),
        lambda out, y: F.nll_loss(F.log_softmax(out, -1), y),
        lambda out, y: poptorch.identity_loss(
            0.5 * (F.cross_entropy(out, y) + F.cross_entropy(out, y)), "sum"
        ),
        lambda out, y: poptorch.identity_loss(-F.log_softmax(out, -1).gather(1, y[:, None]).mean(), "none"),
        torch.nn.CrossEntropyLoss(),
    ],
)
def test_the_final_loss_is_found_wherever_it_stands(function):
    """The same loss, returned or not, from identity_loss or a loss function."""
    reference, model = Wrapper(None), Wrapper(function)
    x, y = batch(6)
    F.cross_entropy(reference.layer(x), y).backward()
    executor = training(model, lr=1.0)
    executor(x, y)
    expected = reference.layer.weight - reference.layer.weight.grad
    torch.testing.assert_close(model.layer.weight.detach(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_a_loss_is_followed_through_scripted_code():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        doubled = torch.jit.script(_doubled)
    model = Wrapper(lambda out, y: poptorch.identity_loss(doubled(F.cross_entropy(out, y)), "none"))
    training(model)(*batch(3))


def _doubled(x):
    return x * 2


cross_entropy_by_reference = F.cross_entropy


def test_a_loss_function_held_by_reference_is_seen():
    model = Wrapper(lambda out, y: (out, cross_entropy_by_reference(out, y)))
    training(model)(*batch(3))


def test_a_loss_that_is_not_reduced_counts_as_its_sum():
    model, reference = Wrapper(lambda out, y: F.cross_entropy(out, y, reduction="none")), Wrapper(None)
    x, y = batch(6)
    assert training(model, lr=1.0)(x, y).shape == (6,)
    F.cross_entropy(reference.layer(x), y, reduction="sum").backward()
    expected = reference.layer.weight - reference.layer.weight.grad
    torch.testing.assert_close(model.layer.weight.detach(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_no_loss_is_an_error():
    with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph!"):
        training(Wrapper(lambda out, y: out))(*batch(3))


@pytest.mark.parametrize(
    "function",
    [
        lambda out, y: F.cross_entropy(out, y) + F.mse_loss(out, torch.zeros_like(out)),
        lambda out, y: (F.cross_entropy(out, y), poptorch.identity_loss(out, "sum")),
    ],
)
def test_independent_losses_are_an_error(function):
    with pytest.raises(poptorch.Error, match="Multiple independent losses found in graph"):
        training(Wrapper(function))(*batch(3))


def test_inference_needs_no_loss_and_keeps_no_graph():
    model = Classifier()
    x, _ = batch(6)
    out = poptorch.inferenceModel(model, options(iterations=3))(x)
    assert not out.requires_grad
    torch.testing.assert_close(out, model(x).detach())


def test_a_loss_that_is_not_finite_is_the_programs_affair():
    model = Wrapper(lambda out, y: F.cross_entropy(out / 0.0, y))
    assert not torch.isfinite(training(model)(*batch(3)))


# ---- randomness


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        mask = F.dropout(torch.ones(32), 0.5) * self.weight
        return mask, poptorch.identity_loss((mask * x.mean()).sum(), "none")


def masks(seed, calls=2, state=None, **counts):
    model = Noisy()
    executor = training(model, options(mode=poptorch.OutputMode.All, seed=seed, **counts), lr=0.0)
    if state is not None:
        executor.rng_state = state
    size = counts.get("iterations", 1) * counts.get("accumulation", 1) * counts.get("replicas", 1)
    drawn = []
    for _ in range(calls):
        drawn.append(executor(torch.ones(size, 1))[0].reshape(size, 32))
    return torch.cat(drawn), executor.rng_state


def test_every_micro_batch_draws_its_own_and_a_seed_repeats_them():
    drawn, _ = masks(1, iterations=2, accumulation=2, replicas=2)
    assert len({tuple(row.tolist()) for row in drawn}) == 16
    torch.rand(5)  # independent of the host's random numbers
    again, _ = masks(1, iterations=2, accumulation=2, replicas=2)
    assert torch.equal(drawn, again)
    other, _ = masks(2, iterations=2, accumulation=2, replicas=2)
    assert not torch.equal(drawn, other)


def test_a_draw_depends_on_its_update_not_on_how_calls_are_cut():
    assert torch.equal(masks(1, calls=1, iterations=4)[0], masks(1, calls=4, iterations=1)[0])


def test_rng_state_resumes():
    whole, _ = masks(5, calls=4, accumulation=2)
    _, state = masks(5, calls=2, accumulation=2)
    assert all(isinstance(number, int) for number in state)
    rest, _ = masks(99, calls=2, accumulation=2, state=state)
    assert torch.equal(rest, whole[4:])


def test_without_a_seed_runs_differ_and_the_host_is_untouched():
    host = torch.get_rng_state()
    first, second = masks(None)[0], masks(None)[0]
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), host)


# ---- outputs


Pair = collections.namedtuple("Pair", ["left", "right"])


def test_the_structure_of_outputs_is_rebuilt():
    def forward(out, y):
        return {"a": Pair(out, [F.cross_entropy(out, y), "text"]), "b": (None, 3)}

    result = training(Wrapper(forward))(*batch(3))
    assert list(result) == ["a", "b"]
    assert type(result["a"]) is Pair and result["b"] == (None, 3)
    assert result["a"].left.shape == (3, 3) and result["a"].right[0].dim() == 0
    assert result["a"].right[1] == "text"


def test_a_model_that_returns_nothing_returns_none():
    def forward(out, y):
        F.cross_entropy(out, y)

    assert training(Wrapper(forward))(*batch(3)) is None


def test_wide_types_come_back_narrow():
    def forward(out, y):
        return out.argmax(-1), out.double(), F.cross_entropy(out, y), out > 0, out.half()

    indices, wide, _, booleans, half = training(Wrapper(forward))(*batch(3))
    assert (indices.dtype, wide.dtype) == (torch.int32, torch.float32)
    assert (booleans.dtype, half.dtype) == (torch.bool, torch.float16)


def test_float64_models_compute_in_float32_and_keep_their_type_on_the_host():
    model = Classifier().double()
    executor = training(model)
    x, y = batch(4)
    logits, loss = executor(x.double(), y)
    assert logits.dtype == loss.dtype == torch.float32
    assert model.first.weight.dtype == torch.float64


def test_outputs_are_the_callers():
    class Echo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return x, self.weight

    model = Echo()
    executor = poptorch.inferenceModel(model)
    x = torch.ones(2)
    echoed, weight = executor(x)
    echoed.add_(5)
    weight.add_(5)
    assert torch.equal(x, torch.ones(2))
    assert torch.equal(executor(x)[1], torch.zeros(2))


def test_output_backward_is_refused():
    with pytest.raises(poptorch.Error, match="backward\\(\\) cannot be called explicitly on outputs"):
        training(Classifier())(*batch(3))[1].backward()


def test_a_period_longer_than_the_call_returns_nothing():
    model = Classifier()
    executor = training(model, options(iterations=2, mode=poptorch.OutputMode.EveryN, period=3))
    logits, loss = executor(*batch(4))
    assert logits.shape == (0, 3) and loss.shape == (0,)


# ---- the rest


def test_modes_resolve_in_the_executors_own_options():
    model, made = Classifier(), options()
    executor = training(model, made)
    assert made.output_mode == poptorch.OutputMode.Default
    assert executor.options.output_mode == poptorch.OutputMode.Final
    assert poptorch.inferenceModel(model, made).options.output_mode == poptorch.OutputMode.All
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        made.deviceIterations(2)
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        executor.options.deviceIterations(2)


def test_an_executor_passes_attributes_on_and_can_be_wrapped_itself():
    model = Classifier()
    executor = training(model)
    assert executor.first is model.first
    executor.eval()
    assert not model.training
    assert poptorch.inferenceModel(executor).model.first is model.first
    with pytest.raises(AttributeError):
        _ = executor.nothing_of_that_name


def test_latencies_and_counters():
    executor = training(Classifier())
    assert executor.getLatency() == (0.0, 0.0, 0.0)
    assert executor.getPerfCounters()["input"] == [[]]
    executor(*batch(3))
    executor(*batch(3))
    shortest, longest, average = executor.getLatency()
    assert 0 < shortest == average == longest
    assert executor.compilationTime() > datetime.timedelta()


def test_synthetic_data_have_no_latencies():
    """Latencies are measured by transfers, of which there are none."""
    executor = training(Classifier(), options().enableSyntheticData(True))
    executor(*batch(3))
    assert executor.getLatency() == executor.getComputeLatency() == (0.0, 0.0, 0.0)
    assert executor.getHostIpuLatency() == executor.getIpuHostLatency() == (0.0, 0.0, 0.0)
    assert set(executor.getPerfCounters()) == {"input", "input_complete", "output", "output_complete"}
    assert all(times == [[]] for times in executor.getPerfCounters().values())


@pytest.mark.parametrize(("mode", "returned"), [("All", 16), ("EveryN", 8), ("Final", 2), ("Sum", 2)])
def test_perf_counters_have_a_time_for_each_tensor_and_micro_batch(mode, returned):
    made = options(4, 2, 2, getattr(poptorch.OutputMode, mode), 2 if mode == "EveryN" else 1)
    executor = training(Classifier(), made)
    _, loss = executor(*batch(16))
    assert len(loss) == returned
    lengths = {
        event: [len(times) for times in by_tensor] for event, by_tensor in executor.getPerfCounters().items()
    }
    assert lengths == {
        "input": [16, 16],
        "input_complete": [16, 16],
        "output": [returned, returned],
        "output_complete": [returned, returned],
    }


def test_compile_hooks_run_around_a_compilation():
    calls = []
    before = poptorch.registerPreCompileHook(lambda: calls.append("before"))
    after = poptorch.registerPostCompileHook(lambda: calls.append("after"))
    executor = training(Classifier())
    executor(*batch(3))
    executor(*batch(3))
    before.remove()
    after.remove()
    assert calls == ["before", "after"]
    with pytest.raises(RuntimeError, match="Pre-compile hook must be callable"):
        poptorch.registerPreCompileHook(3)


def test_tensor_names():
    executor = training(Classifier())
    with pytest.raises(AssertionError):
        executor.getTensorNames()
    executor.compile(*batch(3))
    assert {"first.weight", "Gradient___first.weight", "UpdatedVar___first.weight"} <= set(
        executor.getTensorNames()
    )


# ---- float16


def test_float16_weights_stay_float16_and_train():
    model = Classifier().half()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.05)
    executor = poptorch.trainingModel(model, options(accumulation=2), optimizer)
    x, y = batch(8)
    losses = [float(executor(x, y)[1]) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert model.first.weight.dtype == torch.float16
    assert optimizer.state_dict()["ipu_state"]["Accl1___first.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(4, 4)[:, 1],
    ],
    ids=["float32", "float64", "bfloat16", "int64", "not contiguous"],
)
def test_a_change_of_an_input_in_place_reaches_the_callers_tensor(x):
    class Adds(torch.nn.Module):
        def forward(self, x):
            x += 3
            return x * 2

    x = x.clone() if x.is_contiguous() else x
    dtype = x.dtype
    output = poptorch.inferenceModel(Adds(), poptorch.Options().deviceIterations(2))(x)
    assert x.dtype == dtype and x.tolist() == [3] * 4 and output.tolist() == [6] * 4


def test_outputs_are_saved_as_plain_tensors(tmp_path):
    """So that they can be loaded without poptorch."""
    output = poptorch.inferenceModel(Classifier().eval())(batch(2)[0])
    torch.save({"logits": output}, tmp_path / "outputs.pt")
    assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True)["logits"], output)
    assert b"poptorch" not in pickle.dumps(output)
    leaf = output.clone().requires_grad_()
    leaf.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


class Scaling(torch.nn.Module):
    """Its own training flag doubles the input; its layer's flag triples it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.offset = 0

    def forward(self, x):
        return x * self.weight * (2 if self.training else 1) * (3 if self.layer.training else 1) + self.offset


def test_an_inference_model_is_a_shallow_copy_of_the_users():
    user = Scaling()
    executor = poptorch.inferenceModel(user)
    assert executor.model is not user and type(executor.model) is Scaling
    assert executor.weight is user.weight and executor.model.layer is user.layer
    executor.eval()
    assert executor(torch.ones(1)).tolist() == [1]
    # The flag of a submodule is shared, as the submodule is.
    assert user.training and not executor.model.training and not user.layer.training


def test_each_inference_model_has_its_own_flag_and_plain_attributes():
    user = Scaling()
    first, second = poptorch.inferenceModel(user), poptorch.inferenceModel(user)
    first.model.offset = 5
    first.model.training = False
    user.offset = 7
    assert first(torch.ones(1)).tolist() == [8]
    assert second(torch.ones(1)).tolist() == [6]
    assert (first.offset, second.offset) == (5, 0)


def test_training_reaches_the_users_model():
    user = Scaling()
    executor = poptorch.trainingModel(user)
    executor.eval()
    assert executor.model is user and not user.training


def test_a_model_of_part_of_a_trained_one_gets_its_new_weights():
    model = Classifier()
    trained = training(model)
    part = poptorch.inferenceModel(model.first)
    x, y = batch(1)
    before = part(x)
    trained(x, y)
    after = part(x)
    assert not torch.equal(before, after)
    assert torch.allclose(after, model.first(x))


def test_an_executor_is_printed_as_its_model():
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
    model = torch.nn.Sequential(first, poptorch.BeginBlock(second, "out", ipu_id=1))
    for executor in (poptorch.inferenceModel(model), poptorch.trainingModel(model)):
        lines = repr(executor).splitlines()
        assert "(0): Linear(in_features=2, out_features=3, bias=True)" in lines[1]
        assert "BeginBlock(user_id=out, ipu_id=1): Linear(in_features=3, out_features=2" in lines[2]


def test_the_optimizer_of_an_offline_model_has_no_state():
    model = Classifier()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    made = poptorch.Options().useOfflineIpuTarget()
    executor = poptorch.trainingModel(model, made, optimizer)
    executor.compile(*batch(2))
    executor.setOptimizer(optimizer)
    state = optimizer.state_dict()
    assert (state["ipu_state"], state["ipu_param"]) == (None, None)
    executor.destroy()
    online = poptorch.trainingModel(model, optimizer=optimizer)
    online(*batch(2))
    assert optimizer.state_dict()["ipu_state"]
