"""Fused calls of a replay: losses over many classes and gradients of tied embeddings, with PyTorch's bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ipu_simulator.numerics import fused
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.poptorch.executor_models import options, poptorch

SAMPLES, CLASSES, HIDDEN = 40, 9001, 32  # 360,040 logits: more than a chunk, and no multiple of one


class Operations(TorchDispatchMode):
    """Names, with overloads, of the operations inside, and the shapes of their results."""

    def __init__(self):
        super().__init__()
        self.names, self.made = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(str(func).removeprefix("aten."))
        if isinstance(result, torch.Tensor):
            self.made.add((str(func).removeprefix("aten."), tuple(result.shape)))
        return result


def written(logits, labels):
    """The logits change after their log-softmax."""
    likely = F.log_softmax(logits, 1)
    logits.mul_(2)
    return F.nll_loss(likely, labels) + logits.mean()


def log_softmax_and_nll(logits, labels, **more):
    return F.nll_loss(F.log_softmax(logits, -1), labels, **more)


LOSSES = {
    "mean": F.cross_entropy,
    "named": lambda logits, labels: F.cross_entropy(target=labels, input=logits),
    "sum": lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum"),
    "each": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none")[2:].sum() / 7,
    "ignored": lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=3),
    "module": lambda logits, labels: nn.NLLLoss()(nn.LogSoftmax(dim=1)(logits), labels),
    "method": lambda logits, labels: F.nll_loss(logits.log_softmax(1), labels, ignore_index=3),
    "log softmax": lambda logits, labels: log_softmax_and_nll(logits, labels, reduction="sum"),
    "scaled": lambda logits, labels: 3 * F.cross_entropy(logits * 0.7, labels.long()),
    "written": written,
    "twice": lambda logits, labels: F.cross_entropy(logits, labels) + F.cross_entropy(-logits, labels),
    "transposed": lambda logits, labels: F.cross_entropy(logits.t().contiguous().t(), labels),
    "images": lambda logits, labels: F.cross_entropy(logits.view(2, -1, CLASSES).mT, labels.view(2, -1)),
    "probabilities": lambda logits, labels: F.cross_entropy(logits, F.one_hot(labels, CLASSES).float()),
}
PLAIN = {"written", "transposed", "images", "probabilities"}  # aren't fused


class Tied(nn.Module):
    """Embeddings [CLASSES, HIDDEN] of ids [N], multiplied by the same table again; a loss of the products."""

    def __init__(self, loss=F.cross_entropy, padding=None, outputs=lambda logits: ()):
        super().__init__()
        torch.manual_seed(3)
        self.word = nn.Embedding(CLASSES, HIDDEN, padding_idx=padding)
        self.middle = nn.Linear(HIDDEN, HIDDEN)
        self._loss, self._outputs = loss, outputs

    def forward(self, ids, labels):
        logits = F.linear(torch.tanh(self.middle(self.word(ids))), self.word.weight)
        loss = self._loss(logits, labels)
        return (poptorch.identity_loss(loss, "none"), *self._outputs(logits))


def batch(samples=SAMPLES, seed=5):
    torch.manual_seed(seed)
    ids = torch.randint(40, (samples,))  # many more than once
    labels = torch.randint(CLASSES, (samples,))
    labels[::6] = 3
    return ids, labels


def plain_updates(model, parts, rate):
    """Losses of two updates of plain SGD, which change `model`."""
    losses = []
    for _ in range(2):
        for ids, labels in parts:
            loss = model(ids, labels)[0]
            losses.append(loss.detach())
            loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= rate * weight.grad / len(parts)
                weight.grad = None
    return torch.stack(losses)


def check(make, parts=None, **opts):
    """The simulator's losses and weights have the bits of plain PyTorch's; the operations of an update."""
    parts = parts or [batch()]
    model, plain = make(), make()
    executor = poptorch.trainingModel(
        model, options(mode=poptorch.OutputMode.All, **opts), poptorch.optim.SGD(model.parameters(), lr=0.5)
    )
    inputs = [torch.cat(tensors) for tensors in zip(*parts)]
    losses = [executor(*inputs)[0].flatten()]
    with Operations() as operations:
        losses.append(executor(*inputs)[0].flatten())
    assert torch.equal(torch.cat(losses), plain_updates(plain, parts, 0.5))
    for weight, expected in zip(model.parameters(), plain.parameters()):
        assert torch.equal(weight, expected)
    return operations


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_classes_has_pytorchs_bits(name):
    operations = check(lambda: Tied(LOSSES[name]))
    assert ("_log_softmax_backward_data.out" in operations.names) == (name not in PLAIN)


def test_logits_and_probabilities_that_a_program_returns_stay_as_they_are():
    def loss(logits, labels):
        loss.likely = F.log_softmax(logits, 1)
        return F.nll_loss(loss.likely, labels)

    def outputs(logits):
        return logits, loss.likely

    model, plain = Tied(loss, outputs=outputs), Tied(loss, outputs=outputs)
    executor = poptorch.trainingModel(model, None, poptorch.optim.SGD(model.parameters(), lr=0.5))
    for _ in range(2):
        found, expected = executor(*batch()), plain(*batch())
        assert all(map(torch.equal, found, expected))
        expected[0].backward()
        with torch.no_grad():
            for weight in plain.parameters():
                weight -= 0.5 * weight.grad
                weight.grad = None


@pytest.mark.parametrize("padding", [None, 3, -CLASSES + 5, CLASSES - 1])
def test_a_tied_embeddings_gradient_has_pytorchs_bits_and_no_table_of_zeros(padding):
    operations = check(lambda: Tied(padding=padding))
    table = (CLASSES, HIDDEN)
    assert ("embedding_dense_backward.default", table) not in operations.made


class Untied(Tied):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, ids, labels):
        loss = F.cross_entropy(self.head(torch.tanh(self.middle(self.word(ids)))), labels)
        return (poptorch.identity_loss(loss, "none"),)


def test_an_embedding_that_no_product_uses_has_pytorchs_gradient():
    operations = check(Untied)
    assert ("embedding_dense_backward.default", (CLASSES, HIDDEN)) in operations.made


def test_accumulated_gradients_have_pytorchs_bits(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_MERGE", "0")
    check(Tied, [batch(seed=seed) for seed in range(3)], accumulation=3)


def test_merged_micro_batches_take_pytorchs_way():
    parts = [batch(seed=seed) for seed in range(3)]
    model, plain = Tied(), Tied()
    executor = poptorch.trainingModel(
        model,
        options(accumulation=3, mode=poptorch.OutputMode.All),
        poptorch.optim.SGD(model.parameters(), lr=0.5),
    )
    inputs = [torch.cat(tensors) for tensors in zip(*parts)]
    losses = torch.cat([executor(*inputs)[0] for _ in range(2)])
    torch.testing.assert_close(losses, plain_updates(plain, parts, 0.5))


def test_floating_point_exceptions_see_pytorchs_operations():
    opts = options()
    opts.Precision.enableFloatingPointExceptions(True)
    model = Tied()
    executor = poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.5))
    ids, labels = batch()
    executor(ids, labels)
    with torch.no_grad():
        model.word.weight.fill_(3e38)
    executor.copyWeightsToDevice()
    with pytest.raises(poptorch.Error, match="overflow"):
        executor(ids, labels)


def test_inference_takes_pytorchs_way():
    with Operations() as operations:
        poptorch.inferenceModel(Tied())(*batch())
    assert not any(name.endswith(".out") for name in operations.names)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_bfloat16_logits_get_a_float32_loss(reduction):
    torch.manual_seed(0)
    logits = (3 * torch.randn(SAMPLES, CLASSES)).bfloat16()
    labels = batch()[1]
    losses, gradients = [], []
    for function in (
        fused.cross_entropy,
        lambda x, t, reduction: F.cross_entropy(x.float(), t, reduction=reduction),
    ):
        own = logits.clone().requires_grad_()
        losses.append(function(own, labels, reduction=reduction))
        losses[-1].sum().backward()
        gradients.append(own.grad)
    assert losses[0].dtype is torch.float32 and gradients[0].dtype is torch.bfloat16
    assert torch.equal(*losses) and torch.equal(*gradients)


def test_in_bfloat16_logits_are_never_float32(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "bfloat16")
    model = Tied()
    executor = poptorch.trainingModel(model, None, poptorch.optim.SGD(model.parameters(), lr=0.5))
    executor(*batch())
    with Operations() as operations:
        executor(*batch())
    assert ("_to_copy.default", (SAMPLES, CLASSES)) not in operations.made
    assert "_log_softmax_backward_data.out" in operations.names
