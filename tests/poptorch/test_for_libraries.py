"""Undocumented parts of PopTorch that published libraries use."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.poptorch.executor_models import poptorch


class Many(torch.nn.Module):
    """A forward with every kind of parameter."""

    def forward(self, x, y=None, flag=True, *more, scale=1.0, **rest):
        total = x * scale
        for tensor in (y, *more, *rest.values()):
            total = total if tensor is None else total + tensor.sum()
        return total


def test_private_modules_have_the_names_that_libraries_import():
    import poptorch._dataloader
    import poptorch._impl
    import poptorch._poplar_executor
    import poptorch._utils
    from poptorch._poplar_executor import PoplarExecutor

    assert PoplarExecutor is poptorch.PoplarExecutor
    assert poptorch._dataloader.DataLoader is poptorch.DataLoader
    assert poptorch._utils.flattenTensorStructure is poptorch.flattenTensorStructure
    assert not poptorch._impl.isDispatchTracing()


def test_the_compiled_inputs_can_be_looked_up_to_see_the_batch_size():
    # Pipelines destroy an executor that was compiled for another batch size.
    executor = poptorch.inferenceModel(Many())
    assert executor._executable_inputs is None
    executor(y=torch.ones(4, 3), x=torch.ones(4, 2, dtype=torch.int64), scale=2.0)
    compiled = executor._executable_inputs
    assert [(tensor.shape, tensor.dtype) for tensor in compiled.args] == [
        ((4, 2), torch.int64),
        ((4, 3), torch.float32),
    ]
    assert all(isinstance(tensor, torch.Tensor) for tensor in compiled.args)
    assert compiled.kwargs == {"scale": 2.0}
    executor.destroy()
    assert executor._executable_inputs is None
    executor(torch.ones(6), None, False, torch.ones(1), extra=torch.ones(2))
    compiled = executor._executable_inputs
    assert compiled.args[0].shape == (6,) and compiled.args[1:3] == (None, False)
    assert compiled.args[3].shape == (1,) and compiled.kwargs["extra"].shape == (2,)


@dataclass
class Output(OrderedDict):
    """Like diffusers' outputs: a dictionary and a dataclass that can't be constructed without its fields."""

    sample: torch.Tensor
    names: list

    def __post_init__(self):
        for field in fields(self):
            self[field.name] = getattr(self, field.name)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


def test_outputs_that_are_dictionaries_and_dataclasses():
    class Sampler(torch.nn.Module):
        def forward(self, x):
            return Output(sample=x * 2, names=["sample", x + 1])

    x = torch.arange(4.0)
    for _ in range(2):
        output = poptorch.inferenceModel(Sampler())(x)
        assert type(output) is Output and list(output) == ["sample", "names"]
        assert torch.equal(output.sample, x * 2) and output["sample"] is output.sample
        assert output.names is output["names"] and torch.equal(output.names[1], x + 1)


class Marked(torch.Tensor):
    """Like snnTorch's spikes: created in a forward, without data, from numbers and from tensors."""

    @staticmethod
    def __new__(cls, *args, mark=None, **kwargs):
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args, mark=None, **kwargs):
        self.mark = mark

    def numel(self):
        raise AssertionError("a class may give its methods another meaning")


def _makes_subclasses_under_modes():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    try:
        with Mode():
            torch.ones(1).as_subclass(Marked)
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not _makes_subclasses_under_modes(), reason="as_subclass fails in PyTorch 2.0's modes")
@pytest.mark.parametrize("precision", ["float32", "ipu-float16"])
def test_tensors_of_a_class_of_their_own_are_made_in_a_forward(precision, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)

    class Spiking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x):
            given, made = Marked(x * self.weight, mark="given"), Marked([3.0, 4.0])
            assert type(given) is type(made) is Marked and given.mark == "given" and made.mark is None
            assert type(Marked(mark=1)) is Marked and type(torch.Tensor([1.0])) is torch.Tensor
            total = (given + made.to(x.device)).as_subclass(torch.Tensor)
            return total, poptorch.identity_loss(total, "sum")

    model = Spiking()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.5))
    for step in range(3):
        total, _ = executor(torch.tensor([[1.0, 1.0]]))
        assert total.tolist() == [[1.0 - step / 2 + 3.0, 2.0 - step / 2 + 4.0]]
    assert model.weight.tolist() == [-0.5, 0.5]
    assert "__new__" not in vars(torch.Tensor)


def test_a_buffer_that_is_nothing_yet_may_be_made_in_the_forward():
    # Like x-transformers' attention biases: created for the longest sequence so far.
    class Lazy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("bias", None)

        def forward(self, x):
            if self.bias is None or self.bias.shape != x.shape:
                self.register_buffer("bias", torch.arange(x.numel(), dtype=x.dtype))
            return x + self.bias

    model = Lazy()
    executor = poptorch.inferenceModel(model)
    executor.compile(torch.zeros(3))
    assert model.bias is None
    for _ in range(2):
        assert executor(torch.ones(3)).tolist() == [1, 2, 3]
