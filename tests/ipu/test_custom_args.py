"""Arguments of types that a program registers parsers for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor
    label: str = "pair"


class PairParser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct):
        yield struct.left
        yield struct.right

    def reconstruct(self, original_structure, tensor_iterator):
        return type(original_structure)(
            next(tensor_iterator), next(tensor_iterator), original_structure.label
        )


poptorch.registerCustomArgParser(Pair, PairParser())


class Swap(torch.nn.Module):
    def forward(self, pair):
        assert pair.label == "kept"
        return Pair(pair.right * 2, pair.left + 1, pair.label)


def _pair(first: float, size: int = 4) -> Pair:
    return Pair(torch.full((size,), first), torch.arange(size) + first, "kept")


def test_model_takes_and_returns_a_custom_type():
    options = poptorch.Options().deviceIterations(2)
    executor = poptorch.inferenceModel(Swap(), options)
    for first in (1.0, 5.0):
        given = _pair(first)
        result = executor(given)
        assert isinstance(result, Pair) and result.label == "kept"
        assert torch.equal(result.left, given.right * 2)
        assert torch.equal(result.right, given.left + 1)


def test_custom_types_are_frozen_by_the_compilation_too():
    executor = poptorch.inferenceModel(Swap())
    executor(_pair(1.0))
    with pytest.raises(poptorch.Error, match="Shape mismatch for pair"):
        executor(_pair(1.0, size=6))


def test_subclasses_use_the_parser_of_their_nearest_registered_class():
    class Special(Pair):
        pass

    given = Special(torch.ones(1), torch.zeros(1), "kept")
    assert poptorch.flattenTensorStructure([given]) == [given.left, given.right]
    options = poptorch.Options().deviceIterations(2)
    result = poptorch.inferenceModel(Swap(), options)(
        Special(torch.ones(2), torch.tensor([3.0, 4.0]), "kept")
    )
    assert torch.equal(result.left, torch.tensor([6.0, 8.0]))  # cut into micro batches, so it was parsed


def test_accessor_yields_custom_types_in_order():
    accessor = poptorch.AsynchronousDataAccessor([_pair(float(i)) for i in range(5)], load_indefinitely=False)
    try:
        assert [(pair.label, pair.left[0].item()) for pair in accessor] == [
            ("kept", float(i)) for i in range(5)
        ]
    finally:
        accessor.terminate()


def test_a_parser_must_be_one():
    with pytest.raises(poptorch.Error, match="arg_parser must inherit from ICustomArgParser"):
        poptorch.registerCustomArgParser(Pair, object())


def test_geometric_parsers_are_missing_and_say_so():
    with pytest.raises(poptorch.Error, match=r"PyTorch Geometric.*registerCustomArgParser"):
        poptorch.registerGeometricCustomArgParsers()
