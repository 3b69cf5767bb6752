"""Operations on CPU tensors: values, gradients and errors."""

from __future__ import annotations

import json
from collections import namedtuple

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch

IDENTITIES = [
    poptorch.nop,
    poptorch.recomputationCheckpoint,
    lambda x: poptorch.set_available_memory(x, 0.3),
    lambda x: poptorch.ipu_print_tensor(x, "title"),
    lambda x: poptorch.identity_loss(x, "none"),
    lambda x: poptorch.set_overlap_for_input(x, poptorch.OverlapMode.NoOverlap),
    lambda x: poptorch.set_overlap_for_output((x,), poptorch.OverlapMode.OverlapAccumulationLoop)[0],
]


@pytest.mark.parametrize("identity", IDENTITIES)
def test_identities_keep_values_and_autograd(identity):
    x = torch.randn(3, requires_grad=True)
    weights = torch.randn(3)
    y = identity(x)
    (y * weights).sum().backward()
    assert torch.equal(y, x) and torch.equal(x.grad, weights)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_identity_loss_reduces(reduction):
    x = torch.randn(4, requires_grad=True)
    loss = poptorch.identity_loss(x, reduction)
    assert loss.shape == () and torch.equal(loss, getattr(x, reduction)())
    loss.backward()
    assert torch.equal(x.grad, torch.full((4,), 1.0 if reduction == "sum" else 0.25))
    with pytest.raises(AssertionError, match="Unsupported reduction type!"):
        poptorch.identity_loss(x, "max")


def test_the_loss_that_trains_is_the_one_that_is_marked():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.weight * x).sum(), poptorch.identity_loss(3 * self.weight, "none")

    model = Model()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1.0))
    _, loss = executor(torch.full((2,), 100.0))
    assert torch.equal(loss, torch.full((2,), 3.0))
    assert torch.equal(model.weight, torch.full((2,), 1.0 - 3.0))


def test_recomputation_checkpoint_gives_back_what_it_got():
    a, b = torch.ones(1), torch.zeros(2)
    Pair = namedtuple("Pair", "first second")
    assert isinstance(poptorch.recomputationCheckpoint(a), torch.Tensor)
    assert type(poptorch.recomputationCheckpoint(a, b)) is tuple
    assert type(poptorch.recomputationCheckpoint([a, b])) is list
    assert type(poptorch.recomputationCheckpoint((a,))) is tuple
    assert type(poptorch.recomputationCheckpoint(Pair(a, b))) is Pair
    with pytest.raises(ValueError, match="All inputs must be tensors"):
        poptorch.recomputationCheckpoint(a, 3)


@pytest.mark.parametrize("mode", list(poptorch.MatMulSerializationMode))
def test_serialized_matmul_is_a_matmul(mode):
    lhs, rhs = torch.randn(2, 3, requires_grad=True), torch.randn(3, 5)
    product = poptorch.serializedMatMul(lhs, rhs, mode, factor=5)
    assert torch.equal(product, lhs @ rhs)
    product.sum().backward()
    assert torch.equal(lhs.grad, torch.ones(2, 5) @ rhs.T)
    with pytest.raises(AssertionError):
        poptorch.serializedMatMul(lhs, rhs, mode.value)


def test_attributes_nest_and_come_back():
    class Model(torch.nn.Module):
        def forward(self, x):
            outer = poptorch.Attribute(__outline={"layer": "embedding"})
            outer.__enter__()
            with poptorch.Attribute(__outline={"part": "sum"}, other={"a": "b"}):
                x = torch.relu(x)
                with outer:
                    x = torch.relu(x)
            x = torch.relu(x)
            outer.__exit__(None, None, None)
            return torch.relu(x)

    executor = poptorch.inferenceModel(Model())
    executor.compile(torch.ones(2))
    nodes = json.loads(executor._debugGetPopartIR())["maingraph"]
    inner = {"__outline": {"layer": "embedding", "part": "sum"}, "other": {"a": "b"}}
    found = [
        {name: node["attributes"][name] for name in inner if name in node["attributes"]} for node in nodes
    ]
    assert found == [inner, inner, {"__outline": {"layer": "embedding"}}, {}]
    with pytest.raises(AssertionError):
        poptorch.Attribute(__outline={"layer": 1})


def test_what_is_no_tensor_is_refused():
    with pytest.raises(poptorch.Error, match=r"You may only set available memory for torch\.tensor values"):
        poptorch.set_available_memory(3, 0.1)
    with pytest.raises(poptorch.Error, match=r"ipu print tensor must take a torch\.tensor argument"):
        poptorch.ipu_print_tensor("x")
    with pytest.raises(KeyError):
        poptorch.ipu_print_tensor(torch.ones(1), float_format="hex")
    with pytest.raises(AssertionError):
        poptorch.NameScope(1)
    with poptorch.NameScope("name"):
        pass


def test_helpers_for_programs_and_their_tests():
    assert poptorch.testing.allclose(
        (torch.ones(2), [torch.zeros(1)]), (torch.ones(2) + 1e-7, [torch.zeros(1)])
    )
    assert not poptorch.testing.allclose((torch.ones(2),), (torch.zeros(2),))
    assert not poptorch.testing.allclose([torch.ones(2)], [])
    channel = poptorch.profiling.Channel("loop")
    thing = object()
    assert channel.instrument(thing, "method") is thing
    with channel.tracepoint("step"):
        pass


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int64])
def test_indices_and_labels_need_no_64_bits(dtype):
    """The device has no 64-bit integers."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 4)

        def forward(self, x, labels):
            logits = self.fc(x)
            chosen = logits.gather(1, labels[:, None])
            counts = torch.zeros(4, device=x.device).scatter_add(0, labels, torch.ones(6, device=x.device))
            hot = torch.nn.functional.one_hot(labels, 4)
            return chosen, counts, hot, torch.nn.functional.cross_entropy(logits, labels)

    x, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 3])
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        expected = model(x, labels)
    executor = poptorch.trainingModel(model)
    for _ in range(2):
        outputs = executor(x, labels.to(dtype))
    assert outputs[3] < expected[3] and outputs[2].tolist() == expected[2].tolist()
    assert torch.equal(outputs[1], expected[1]) and outputs[0].shape == expected[0].shape
