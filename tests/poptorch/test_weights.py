"""Host and device weights: edits, implicit downloads, sharing, wrapping and unwrapping."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from tests.poptorch.executor_models import FEATURES, Classifier, batch, clones, options, poptorch, same


def trained(model, calls=1, **counts):
    executor = poptorch.trainingModel(
        model, options(**counts), poptorch.optim.SGD(model.parameters(), lr=0.5)
    )
    for seed in range(calls):
        executor(*batch(4, seed))
    return executor


def test_wrapping_keeps_every_object_and_changes_classes_only():
    model = Classifier()
    weight, layer = model.first.weight, model.first
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert type(model).__name__ == "PoptorchClassifier"
    assert isinstance(model, Classifier)
    assert model.first is layer and model.first.weight is weight
    assert type(weight).__name__ == "PoptorchParameter"
    assert isinstance(weight, torch.nn.Parameter)
    assert executor.model is model
    assert [name for name, _ in executor.named_parameters()] == [
        name for name, _ in Classifier().named_parameters()
    ]


def test_buffers_are_wrapped_and_other_classes_refused():
    model = torch.nn.BatchNorm1d(3)
    poptorch.trainingModel(model)
    assert type(model.running_mean).__name__ == "PoptorchBuffer"

    class Special(torch.Tensor):
        pass

    model = Classifier()
    model.register_buffer("special", torch.ones(2).as_subclass(Special))
    with pytest.raises(poptorch.Error, match=r"All buffers must be an instance of torch.Tensor"):
        poptorch.trainingModel(model)


@pytest.mark.parametrize(
    "touch",
    [
        lambda model, held: model.first.weight.clone(),
        lambda model, held: held.clone(),
        lambda model, held: torch.clone(held),
        lambda model, held: held + 0,
        lambda model, held: model.state_dict()["first.weight"].clone(),
        lambda model, held: next(model.parameters()).data.clone(),
        lambda model, held: torch.from_numpy(held.detach().numpy().copy()),
        lambda model, held: torch.tensor(held.tolist()),
        lambda model, held: copy.deepcopy(model).first.weight,
        lambda model, held: copy.deepcopy(held),
        lambda model, held: pickle.loads(pickle.dumps(model)).first.weight,
    ],
)
def test_any_touch_sees_the_trained_weights(touch):
    reference = Classifier()
    trained(reference)
    expected = reference.first.weight.detach().clone()
    model = Classifier()
    held = model.first.weight
    before = held.detach().clone()
    executor = trained(model)
    seen = touch(model, held)
    assert not torch.equal(seen, before)
    assert torch.equal(seen, expected)
    assert not executor.copyWeightsToHostIfNeeded()


def test_forward_on_the_host_uses_the_trained_weights():
    model = Classifier()
    layer = model.first
    x, _ = batch(4)
    before = layer(x)
    trained(model)
    assert not torch.equal(layer(x), before)


def test_only_a_touch_downloads():
    model = Classifier()
    executor = trained(model)
    assert model.training and model.__class__
    assert executor.copyWeightsToHostIfNeeded()
    assert not executor.copyWeightsToHostIfNeeded()


def test_host_edits_have_no_effect_until_uploaded():
    edited, untouched = Classifier(), Classifier()
    executor, reference = trained(edited), trained(untouched)
    with torch.no_grad():
        edited.first.weight.zero_()
    x, y = batch(4, 7)
    assert torch.equal(executor(x, y)[1], reference(x, y)[1])
    assert same(clones(edited), clones(untouched))  # the download replaced the edit
    with torch.no_grad():
        edited.first.weight.zero_()
        untouched.first.weight.zero_()
    executor.copyWeightsToDevice()
    loss = executor(x, y)[1]
    assert torch.equal(loss, untouched(x, y)[1].detach())


def test_an_edit_in_place_lands_on_the_trained_values():
    model, reference = Classifier(), Classifier()
    weight = model.first.weight
    executor = trained(model)
    trained(reference)
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(weight.detach(), reference.first.weight.detach() + 1.0)
    executor.copyWeightsToDevice()
    executor.copyWeightsToHost()
    assert torch.equal(weight.detach(), reference.first.weight.detach() + 1.0)


def test_gradients_of_the_users_are_left_alone():
    model = Classifier()
    model.first.weight.grad = torch.full_like(model.first.weight, 3.0)
    trained(model, calls=2)
    assert torch.equal(model.first.weight.grad, torch.full((5, 4), 3.0))
    assert model.first.bias.grad is None


def test_tied_weights_stay_one_weight():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(3, 4)
            self.head = torch.nn.Linear(4, 3, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, y):
            return torch.nn.functional.cross_entropy(self.head(self.embedding(y)), y)

    model, reference = Tied(), Tied()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.5))
    y = torch.tensor([0, 1, 2])
    executor(y)
    reference(y).backward()
    expected = reference.head.weight - 0.5 * reference.head.weight.grad
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model.head.weight.detach(), expected.detach())


def test_a_forward_that_reaches_its_layers_through_a_closure_trains_them():
    layer = torch.nn.Linear(4, 3)
    before = layer.weight.detach().clone()

    class Closure(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.registered = layer

        def forward(self, x, y):
            return torch.nn.functional.cross_entropy(layer(x), y)

    model = Closure()
    losses = []
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.5))
    for _ in range(5):
        losses.append(float(executor(*batch(4))))
    assert losses == sorted(losses, reverse=True)
    assert not torch.equal(layer.weight.detach(), before)


def test_frozen_weights_do_not_move():
    model = Classifier()
    model.first.requires_grad_(False)
    before = model.first.weight.detach().clone()
    trained(model)
    assert torch.equal(model.first.weight, before)
    assert not torch.equal(model.second.weight, Classifier().second.weight)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x, y):
        return torch.nn.functional.cross_entropy(self.head(self.norm(x)), y)


def test_running_statistics_are_the_devices_and_come_back():
    torch.manual_seed(0)
    model = Normed()
    plain = torch.nn.BatchNorm1d(4)
    executor = poptorch.trainingModel(
        model, options(accumulation=2), poptorch.optim.SGD(model.parameters(), lr=0.0)
    )
    x, y = batch(8)
    executor.compile(x, y)
    assert int(model.norm.num_batches_tracked) == 0
    executor(x, y)
    for part in x.chunk(2):
        plain(part)
    assert torch.equal(model.norm.running_mean, plain.running_mean)
    assert torch.equal(model.norm.running_var, plain.running_var)
    assert int(model.norm.num_batches_tracked) == 2


def test_each_replica_has_its_own_running_statistics():
    torch.manual_seed(0)
    model = Normed()
    plain = torch.nn.BatchNorm1d(4)
    executor = poptorch.trainingModel(
        model, options(replicas=2, accumulation=2), poptorch.optim.SGD(model.parameters(), lr=0.0)
    )
    x, y = batch(16)
    executor(x, y)
    parts = x.chunk(4)  # [A, R, b]
    plain(parts[0])
    plain(parts[2])
    assert torch.equal(model.norm.running_mean, plain.running_mean)


def test_inference_sees_training_without_a_copy():
    model = Classifier()
    inference = poptorch.inferenceModel(model)
    x, _ = batch(4)
    first = inference(x)
    executor = trained(model)
    second = inference(x)
    assert not torch.equal(first, second)
    executor(*batch(4, 9))
    third = inference(x)
    assert not torch.equal(second, third)
    assert torch.equal(third, model(x).detach())


def test_inference_does_not_see_host_edits_without_a_copy():
    model = Classifier()
    inference = poptorch.inferenceModel(model)
    x, _ = batch(4)
    first = inference(x)
    with torch.no_grad():
        model.first.weight.zero_()
    assert torch.equal(inference(x), first)
    inference.copyWeightsToDevice()
    assert torch.equal(inference(x), model(x).detach())


def test_load_state_dict_on_the_executor_uploads_and_on_the_model_does_not():
    model = Classifier()
    executor = trained(model)
    x, y = batch(4)
    start = clones(Classifier())
    executor.load_state_dict(start)
    assert torch.equal(executor(x, y)[1], Classifier()(x, y)[1].detach())
    model.load_state_dict(start)
    assert not torch.equal(executor(x, y)[1], Classifier()(x, y)[1].detach())


def test_copies_and_pickles_are_plain():
    model = Classifier()
    trained(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert type(copied) is Classifier
        if copied.first is not model.first:
            assert type(copied.first.weight) is torch.nn.Parameter
    assert type(model).__name__ == "PoptorchClassifier"
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    assert type(loaded) is Classifier and same(clones(loaded), clones(model))
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    assert same(torch.load(stored, weights_only=True), clones(model))


def test_destroy_unwraps_with_the_latest_weights():
    model = Classifier()
    executor = trained(model)
    with pytest.raises(RuntimeError, match="Model has already been wrapped"):
        poptorch.trainingModel(model)
    model.destroy()
    assert type(model) is Classifier and type(model.first.weight) is torch.nn.Parameter
    assert not torch.equal(model.first.weight, Classifier().first.weight)
    with pytest.raises(poptorch.Error, match="Model has not been compiled or has been destroyed"):
        executor.copyWeightsToHost()
    assert not executor.isCompiled()
    again = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.5))
    again(*batch(3))


def test_destroy_before_compiling_does_nothing():
    model = Classifier()
    executor = poptorch.trainingModel(model)
    executor.destroy()
    assert type(model).__name__ == "PoptorchClassifier"


def test_unwrap_for_a_while_and_rewrap():
    model = Classifier()
    trained(model)
    poptorch._impl.unwrapModelIfNecessary(model)
    assert type(model) is Classifier
    poptorch._impl.rewrapModelIfNecessary(model)
    assert type(model).__name__ == "PoptorchClassifier"
    poptorch._impl.rewrapModelIfNecessary(model)


def test_detach_downloads_and_attach_uploads():
    model = Classifier()
    executor = trained(model)
    reference_model = Classifier()
    reference = trained(reference_model)
    executor.detachFromDevice()
    assert not executor.isAttachedToDevice()
    with pytest.raises(poptorch.Error, match="Device is not attached"):
        executor.detachFromDevice()
    x, y = batch(4, 3)
    assert torch.equal(executor(x, y)[1], reference(x, y)[1])  # re-attaches automatically
    assert executor.isAttachedToDevice()
    with pytest.raises(poptorch.Error, match="Device is already attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    with torch.no_grad():
        model.first.weight.zero_()
    edited = copy.deepcopy(model)
    executor.attachToDevice()
    assert torch.equal(executor(x, y)[1], edited(x, y)[1].detach())


def test_two_training_models_share_a_layer():
    """Each executor has separate device weights; an access sees those of the last run, and destroying one
    executor leaves the other wrapped.
    """

    class Outer(torch.nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.shared = shared

        def forward(self, x, y):
            return self.shared(x, y)

    shared = Classifier()
    shared.register_buffer("table", torch.ones(2))
    first, second = Outer(shared), Outer(shared)
    executors = [poptorch.trainingModel(model, optimizer=None) for model in (first, second)]
    before = shared.first.weight.detach().clone()
    executors[0](*batch(4))
    after_first = shared.first.weight.detach().clone()
    assert not torch.equal(after_first, before)
    executors[1](*batch(4, 1))
    assert not torch.equal(shared.first.weight.detach(), after_first)
    executors[0].destroy()
    held = shared.first.weight.detach().clone()
    executors[1](*batch(4, 2))
    assert not torch.equal(shared.first.weight.detach(), held)
    executors[1].destroy()
    assert type(shared.first.weight) is torch.nn.Parameter and type(shared.table) is torch.Tensor


def test_implicit_copies_are_logged(caplog):
    with caplog.at_level("DEBUG", logger="poptorch::python"):
        model = Classifier()
        inference = poptorch.inferenceModel(model.eval())
        inference(batch(4)[0])
        executor = trained(model)
        assert not caplog.messages
        inference(batch(4)[0])
        assert caplog.messages == ["Implicit copyWeightsToHost()", "Implicit copyWeightsToDevice()"]
        executor.copyWeightsToHost()
    assert len(caplog.messages) == 2


class Summing(torch.nn.Module):
    """Sums its inputs in a buffer."""

    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("total", torch.zeros(shape))

    def forward(self, x):
        self.total += x
        return self.total


def test_replicas_may_have_buffers_of_their_own():
    model = Summing(2, 1)
    made = options(replicas=2).broadcastBuffers(False)
    executor = poptorch.inferenceModel(model, made)
    for _ in range(3):
        sums = executor(torch.tensor([[1.0], [10.0]]).reshape(2))
    assert torch.equal(sums, torch.tensor([3.0, 30.0]))
    executor.copyWeightsToHost()
    assert torch.equal(model.total, torch.tensor([[3.0], [30.0]]))
    with torch.no_grad():
        model.total.copy_(torch.tensor([[100.0], [200.0]]))
    executor.copyWeightsToDevice()
    assert torch.equal(executor(torch.tensor([1.0, 1.0])), torch.tensor([101.0, 201.0]))


def test_replicas_may_begin_alike_with_buffers_of_their_own():
    model = Summing(1)
    executor = poptorch.inferenceModel(model, options(replicas=2).broadcastBuffers(False))
    for count in (1.0, 2.0):
        assert executor(torch.tensor([1.0, 10.0])).tolist() == [count, 10 * count]
    executor.copyWeightsToHost()
    assert model.total.tolist() == [2.0]  # the first replica's


def test_wrapped_tensors_become_parameters_of_other_models():
    model = Classifier()
    model.register_buffer("table", torch.ones(2))
    executor = trained(model)
    other = torch.nn.Linear(FEATURES, 5)
    other.weight = torch.nn.Parameter(model.first.weight)
    assert type(other.weight) is torch.nn.Parameter and other.weight.requires_grad
    assert torch.equal(other.weight, model.first.weight)
    assert torch.equal(torch.nn.Parameter(model.table, requires_grad=False), torch.ones(2))
    executor(*batch(4))
    assert torch.equal(torch.nn.Parameter(model.first.weight), model.first.weight)


def test_wrapped_tensors_are_shown_as_plain_ones():
    model = torch.nn.BatchNorm1d(3)
    shown = [repr(model.weight), repr(model.running_mean)]
    poptorch.trainingModel(model)
    assert [repr(model.weight), str(model.running_mean)] == shown


class _Buffered(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(1))
        self.inner = torch.nn.Module()
        self.inner.register_buffer("alias", self.factor)

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("names", [["factr"], ["factor", "inner.factor"], ["weight"]])
def test_updatable_buffers_are_the_model_s(names):
    made = poptorch.Options().updatableNamedBuffers(names)
    executor = poptorch.inferenceModel(_Buffered(), made)
    with pytest.raises(
        poptorch.Error, match=f"names '{names[-1]}', but the model's buffers are 'factor', 'inn"
    ):
        executor(torch.ones(1))
    with pytest.raises(poptorch.Error, match=r"updatableNamedBuffers .* buffers are none"):
        poptorch.inferenceModel(torch.nn.Linear(1, 1), made).compile(torch.ones(1))


@pytest.mark.parametrize("name", ["factor", "inner.alias"])
def test_a_buffer_is_updated_by_any_of_its_names(name):
    model = _Buffered()
    executor = poptorch.inferenceModel(model, poptorch.Options().updatableNamedBuffers([name]))
    assert executor(torch.ones(1)) == 1
    model.factor.fill_(3.0)
    assert executor(torch.ones(1)) == 1
    executor.copyNamedBuffersToDevice()
    assert executor(torch.ones(1)) == 3
