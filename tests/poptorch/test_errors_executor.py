"""The executor's errors, with the texts that callers match."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F

from tests.poptorch.executor_models import Classifier, batch, options, poptorch

optim = poptorch.optim


def training(model, made=None):
    return poptorch.trainingModel(model, made, optim.SGD(model.parameters(), lr=0.1))


# ---- the batch dimension and frozen arguments


def test_the_batch_must_divide():
    made = options(iterations=2, accumulation=3, replicas=2)
    text = (
        "Invalid batch dimension: In the input torch.Size([13, 4]), the batch dimension (13) must be a "
        "multiple of Options.deviceIterations(2) * (Options.replicationFactor(2) / "
        "Options.inputReplicaGrouping.input_group_size(1)) * "
        "Options.Training.gradientAccumulation(3) = 12 because"
    )
    with pytest.raises(AssertionError, match=re.escape(text)):
        training(Classifier(), made)(*batch(13))


def test_a_scalar_counts_as_one():
    class Scaled(torch.nn.Module):
        def forward(self, x, scale):
            return x * scale

    x, scale = torch.ones(2, 3), torch.tensor(2.0)
    assert torch.equal(poptorch.inferenceModel(Scaled())(x, scale), 2 * x)
    with pytest.raises(AssertionError, match=r"the batch dimension \(1\) must be a multiple"):
        poptorch.inferenceModel(Scaled(), options(iterations=2))(x, scale)


class Anything(torch.nn.Module):
    def forward(self, x, others=None, flag=True, *, scale=1):
        return x * scale


def test_how_an_argument_is_passed_makes_no_difference():
    executor = poptorch.inferenceModel(Anything())
    x = torch.ones(4, 3)
    executor(x, None, True)
    for again in (executor(x), executor(x=x), executor(x, flag=True, scale=1)):
        assert torch.equal(again, x)
    with pytest.raises(poptorch.Error, match="mismatch"):
        executor(x, scale=2)


FIRST_DEFAULT, FACTOR, MORE = torch.tensor([2.0]), torch.tensor([1.0]), (3, torch.tensor([0.5]))


class Defaults(torch.nn.Module):
    def forward(self, x, first=FIRST_DEFAULT, /, factor=FACTOR, *, more=MORE):
        factor += 0  # an in-place change of an input
        return x * first * factor * more[0] * more[1]


def test_a_default_that_is_a_tensor_is_an_input():
    one, ten = torch.ones(2), torch.tensor([10.0])
    executor = poptorch.inferenceModel(Defaults())
    executor.compile(one)
    assert executor(one).tolist() == [3, 3]
    assert executor(one, factor=ten).tolist() == executor(one, ten / 5, ten).tolist() == [30, 30]
    assert executor(one, ten).tolist() == executor(one, more=(3, ten / 4)).tolist() == [15, 15]
    assert executor(one).tolist() == [3, 3]
    with pytest.raises(poptorch.Error, match=r"Type mismatch for factor: expected Tensor but got float"):
        executor(one, factor=1.0)
    with pytest.raises(poptorch.Error, match="Shape mismatch for factor"):
        executor(one, factor=one)
    with pytest.raises(poptorch.Error, match=r"Value mismatch for more\[0\]: expected 3 but got 4"):
        executor(one, more=(4, ten))
    executor.destroy()
    executor(one, ten, ten)  # compiled with the argument, and called without it
    assert executor(one).tolist() == [3, 3]
    with pytest.raises(AssertionError, match=r"In the input torch.Size\(\[1\]\), the batch dimension"):
        poptorch.inferenceModel(Defaults(), options(2)).compile(one)


FIRST = ((torch.ones(4, 3), [torch.ones(4), {"k": torch.ones(4)}], True), {"scale": 2})


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        (
            (torch.ones(8, 3), FIRST[0][1], True),
            {"scale": 2},
            "Shape mismatch for x: expected torch.Size([4, 3]) but got torch.Size([8, 3]).",
        ),
        (
            (torch.ones(4, 3).half(), FIRST[0][1], True),
            {"scale": 2},
            "Data type mismatch for x: expected torch.float32 but got torch.float16.",
        ),
        ((3, FIRST[0][1], True), {"scale": 2}, "Type mismatch for x: expected"),
        (
            (FIRST[0][0], [torch.ones(4)], True),
            {"scale": 2},
            "Length mismatch for others: expected 2 but got 1.",
        ),
        (
            (FIRST[0][0], [torch.ones(4), {"z": torch.ones(4)}], True),
            {"scale": 2},
            "Keys mismatch for others[1]: Unexpected arguments: z. Missing arguments: k.",
        ),
        (
            (FIRST[0][0], FIRST[0][1], False),
            {"scale": 2},
            "Value mismatch for flag: expected True but got False.",
        ),
        ((*FIRST[0],), {"scale": 3}, "Value mismatch for scale: expected 2 but got 3."),
        (
            FIRST[0][:1],
            {"scale": 2},
            "Type mismatch for others: expected list but got NoneType.",
        ),
        ((*FIRST[0],), {}, "Value mismatch for scale: expected 2 but got 1."),
    ],
)
def test_inputs_are_frozen_by_the_compilation(args, kwargs, text):
    executor = poptorch.inferenceModel(Anything())
    executor(*FIRST[0], **FIRST[1])
    with pytest.raises(poptorch.Error, match=re.escape(text)) as caught:
        executor(*args, **kwargs)
    assert "the inputs passed at runtime don't match the inputs used to compile the model" in str(
        caught.value
    )
    assert "call destroy() on the curent one and try again" in str(caught.value)
    executor(*FIRST[0], **FIRST[1])
    executor.destroy()
    executor(*args[:1] if isinstance(args[0], torch.Tensor) else FIRST[0])


@pytest.mark.parametrize(
    ("args", "kwargs", "kind", "text"),
    [
        (
            (1, 2, 3, 4),
            {},
            AssertionError,
            "Too many arguments provided: expected ['x', 'others', 'flag'] (3) but got 4",
        ),
        ((1,), {"z": 1}, AssertionError, "z is not a valid parameter.Allowed values are ['x',"),
        ((1,), {"x": 1}, AssertionError, "Parameter x was passed more than once"),
        ((), {}, poptorch.Error, "Mandatory parameter x missing"),
        ((torch.ones(0, 3),), {}, poptorch.Error, "Zero-sized tensors are unsupported (Got shape [0, 3])"),
        ((torch.ones(3, dtype=torch.complex64),), {}, poptorch.Error, "got torch.complex64"),
        ((torch.ones(3, 3).to_sparse(),), {}, poptorch.Error, "got torch.float32, torch.sparse_coo"),
        ((torch.ones(3, device="meta"),), {}, poptorch.Error, "on meta"),
    ],
)
def test_arguments_are_bound_as_python_would(args, kwargs, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        poptorch.inferenceModel(Anything())(*args, **kwargs)


def test_defaults_stand_for_arguments_left_out():
    assert torch.equal(poptorch.inferenceModel(Anything())(torch.ones(2)), torch.ones(2))


# ---- wrapping


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("name", ["deviceIterations", "replicationFactor", "Training.gradientAccumulation"])
def test_counts_below_one(name, count):
    counts = poptorch.Options().from_json(json.dumps({name: count}))
    with pytest.raises(poptorch.Error, match=f"{name} must be at least 1: it is {count}"):
        poptorch.trainingModel(Classifier(), counts)(*batch(4))


def test_wrong_options():
    text = "Invalid type: 'options' is of type"
    with pytest.raises(poptorch.Error, match=text):
        poptorch.trainingModel(Classifier(), {"deviceIterations": 2})
    with pytest.raises(poptorch.Error, match=text):
        poptorch.inferenceModel(Classifier(), 3)


def test_inference_does_not_accumulate():
    with pytest.raises(
        poptorch.Error,
        match=r"You must set poptorch.Options\(\).Training.gradientAccumulation to 1 or leave it as",
    ):
        poptorch.inferenceModel(Classifier(), options(accumulation=2))


def test_the_default_optimizer_is_sgd():
    model, reference = Classifier(), Classifier()
    x, y = batch(4)
    poptorch.trainingModel(model)(x, y)
    reference(x, y)[1].backward()
    expected = reference.first.weight - 0.01 * reference.first.weight.grad
    torch.testing.assert_close(model.first.weight.detach(), expected.detach(), rtol=1e-6, atol=1e-7)


# ---- state of the executor


def test_weights_cannot_move_before_compiling():
    executor = training(Classifier())
    for call in (executor.copyWeightsToHost, executor.copyWeightsToDevice, executor.detachFromDevice):
        with pytest.raises(poptorch.Error, match=r"Model has not been compiled or has been destroyed\."):
            call()
    assert executor.copyWeightsToHostIfNeeded() is False


def test_compiling_twice_only_warns(caplog):
    executor = training(Classifier())
    executor.compile(*batch(4))
    executor.compile(*batch(8))
    assert "Call to compile() ignored: the executable is already compiled" in caplog.text
    executor(*batch(4))


def test_an_offline_target_compiles_and_does_not_run():
    made = options()
    made.useOfflineIpuTarget()
    executor = training(Classifier(), made)
    with pytest.raises(
        AssertionError, match=r"Trying to run a model on an offline device \(ConnectionType.Never\)"
    ):
        executor(*batch(4))
    executor.compile(*batch(4))
    assert executor.isCompiled() and not executor.isAttachedToDevice()
    with pytest.raises(AssertionError):
        executor.attachToDevice()


def test_the_ipu_model_has_no_offline_target():
    made = options().useIpuModel(True)
    made.useOfflineIpuTarget()
    with pytest.raises(poptorch.Error, match="not supported for the IPU model"):
        training(Classifier(), made).compile(*batch(4))


def test_unknown_options_are_found_at_compile():
    made = options()
    made._Popart.set("noSuchOption", True)
    with pytest.raises(poptorch.Error, match=r"Unknown .* option"):
        training(Classifier(), made).compile(*batch(4))


def test_several_processes_without_a_way_to_each_other_are_refused(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    made = options()
    made.Distributed.configureProcessId(0, 2)
    with pytest.raises(poptorch.Error, match=r"MASTER_ADDR.* not set\. Start the processes with torchrun"):
        training(Classifier(), made).compile(*batch(4))


def test_measurements_that_are_not_there():
    executor = training(Classifier())
    with pytest.raises(poptorch.Error, match=r"Please compile the model before obtaining compilation time\."):
        executor.compilationTime()
    with pytest.raises(
        poptorch.Error, match=r"Cycle count logging is disabled\. Please set option logCycleCount"
    ):
        executor.cycleCount()
    with pytest.raises(AssertionError, match=r"No tensor with name x found\."):
        executor.getAnchoredTensor("x")
    with pytest.raises(poptorch.Error, match="No named buffers marked as updatable"):
        executor.copyNamedBuffersToDevice()
    executor = training(Classifier(), options().logCycleCount(True))
    with pytest.raises(
        poptorch.Error, match="Please run the model at least once before obtaining cycle count"
    ):
        executor.cycleCount()
    with pytest.raises(poptorch.Error, match="Model has not been compiled or has been destroyed"):
        executor.save("model.poptorch")


# ---- restrictions of models


class Counting(torch.nn.Module):
    def __init__(self, change):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.change = change

    def forward(self, x):
        self.change(self)
        return x + self.count


def reassign(model):
    model.count = model.count + 1


def remove(model):
    del model.count
    model.register_buffer("other", torch.zeros(1))
    model.count = 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            reassign,
            "Buffer count is reassigned within the model when calling the forward method. This is not supp",
        ),
        (remove, "Buffer count is removed from the model when calling the forward method."),
    ],
)
def test_buffers_change_only_in_place(change, text):
    model = Counting(change)
    before = model.count
    with pytest.raises(poptorch.Error, match=re.escape(text)):
        poptorch.inferenceModel(model)(torch.ones(2))
    assert model._buffers["count"] is before


def test_buffers_changed_in_place_count_on_the_device():
    model = Counting(lambda model: model.count.add_(1))
    executor = poptorch.inferenceModel(model, options(iterations=2))
    assert executor(torch.zeros(2)).tolist() == [1.0, 2.0]
    assert executor(torch.zeros(2)).tolist() == [3.0, 4.0]
    assert model.count.item() == 0
    executor.copyWeightsToHost()
    assert model.count.item() == 4


@pytest.mark.parametrize(
    ("leave", "text"),
    [
        (lambda x: x.sum().item(), "aten::item is only supported in eager mode"),
        (lambda x: x.cpu(), "Illegal move to CPU"),
    ],
)
def test_values_stay_on_the_device(leave, text):
    class Leaving(torch.nn.Module):
        def forward(self, x):
            return x * leave(x)

    with pytest.raises(poptorch.Error, match=re.escape(text)):
        poptorch.inferenceModel(Leaving())(torch.ones(2))


def test_an_error_in_forward_leaves_everything_in_place():
    class Failing(Classifier):
        fail = False

        def forward(self, x, y):
            if Failing.fail:
                raise KeyError("mine")
            return super().forward(x, y)

    model = Failing()
    executor = training(model)
    x, y = batch(4)
    Failing.fail = True
    with pytest.raises(KeyError, match="mine"):
        executor(x, y)
    assert not executor.isCompiled()
    assert not poptorch.isRunningOnIpu()
    Failing.fail = False
    executor(x, y)


def test_an_error_in_a_run_leaves_everything_in_place():
    model = Classifier()
    executor = training(model)
    x, y = batch(4)
    executor(x, y)
    weights = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(poptorch.Error, match="out of bounds"):
        executor(x, torch.full_like(y, 1000))
    assert not poptorch.isRunningOnIpu()
    for weight, before in zip(model.parameters(), weights):
        assert torch.equal(weight.detach(), before)
    executor(x, y)


def test_a_pipeline_needs_enough_accumulation():
    class Staged(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = poptorch.BeginBlock(torch.nn.Linear(4, 4), "A", ipu_id=0)
            self.second = poptorch.BeginBlock(torch.nn.Linear(4, 3), "B", ipu_id=1)

        def forward(self, x, y):
            return F.cross_entropy(self.second(self.first(x)), y)

    with pytest.raises(
        poptorch.Error, match=r"must be greater than or equal to the number of pipeline stages \(3\)"
    ):
        training(Staged(), options(accumulation=2))(*batch(2))
    training(Staged(), options(accumulation=3))(*batch(3))


def test_lazy_layers_need_a_run_on_the_host():
    model = torch.nn.Sequential(torch.nn.LazyLinear(2))
    x = torch.ones(1, 3)
    with pytest.raises(poptorch.Error, match=r"0\.weight has no shape yet: run .* on the host"):
        poptorch.inferenceModel(model)(x)
    expected = model(x)
    assert torch.equal(poptorch.inferenceModel(model)(x), expected.detach())
