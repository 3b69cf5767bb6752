"""PopTorch traces a model once, with shapes alone: nothing in `forward` may look at a value."""

from __future__ import annotations

from typing import Tuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from model import PretrainingModel, SquadModel
from tests.model.builders import BERT, GROUPBERT, VARIANTS, batch


def squad_batch() -> Tuple[torch.Tensor, ...]:
    return (*batch(BERT)[:3], torch.tensor([0, 1, 2, 20]), torch.tensor([3, 4, 5, -100]))


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_jit_trace(name: str) -> None:
    model = PretrainingModel(VARIANTS[name], seed=0)
    traced = torch.jit.trace(model, batch(VARIANTS[name]), check_trace=False)
    other = batch(VARIANTS[name], lengths=(1, 20, 7, 9), seed=4)
    for ours, theirs in zip(model(*other), traced(*other)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_jit_trace_squad() -> None:
    model = SquadModel(GROUPBERT, seed=0)
    traced = torch.jit.trace(model, squad_batch(), check_trace=False)
    other = (*batch(BERT, lengths=(1, 20, 7, 9), seed=4)[:3], *reversed(squad_batch()[3:]))
    for ours, theirs in zip(model(*other), traced(*other)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_fake_tensors_forward_and_backward(config: object, dtype: torch.dtype) -> None:
    inputs = batch(config)
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode() as mode:
            model = PretrainingModel(config)
            loss = model(*(mode.from_tensor(tensor) for tensor in inputs))[0]
            loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype == torch.float32
    for parameter in model.parameters():
        assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == dtype


@pytest.mark.parametrize("config", [BERT, GROUPBERT], ids=["bert", "groupbert"])
def test_make_fx_forward_and_backward(config: object) -> None:
    model = PretrainingModel(config, seed=0)
    parameters = dict(model.named_parameters())

    def step(parameters: dict, *inputs: torch.Tensor) -> list:
        loss = torch.func.functional_call(model, parameters, inputs)[0]
        return list(torch.autograd.grad(loss, list(parameters.values())))

    graph = make_fx(step, tracing_mode="fake")(parameters, *batch(config))
    other = batch(config, lengths=(1, 20, 7, 9), seed=4)
    for ours, theirs in zip(step(parameters, *other), graph(parameters, *other)):
        torch.testing.assert_close(ours, theirs)
