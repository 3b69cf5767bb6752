"""What published libraries use beside PopTorch's documented interface."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields

import torch

from .executor_models import poptorch


class Many(torch.nn.Module):
    """Takes arguments in all ways."""

    def forward(self, x, y=None, flag=True, *more, scale=1.0, **rest):
        total = x * scale
        for tensor in (y, *more, *rest.values()):
            total = total if tensor is None else total + tensor.sum()
        return total


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
    """As diffusers' outputs: a dictionary and a dataclass that can't be made without its fields."""

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
