"""Arguments of custom types with registered parsers."""

from __future__ import annotations

import sys
from collections import UserDict
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


def test_geometric_parsers_need_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(poptorch.Error, match="pip install torch_geometric"):
        poptorch.registerGeometricCustomArgParsers()


def test_graphs_of_pytorch_geometric():
    geometric = pytest.importorskip("torch_geometric.data")
    poptorch.registerGeometricCustomArgParsers()

    class Model(torch.nn.Module):
        def forward(self, graph, mixed):
            graph.x = graph.x + graph.n
            return graph, mixed["a"].x * 2

    mixed = geometric.HeteroData()
    mixed["a"].x = torch.ones(2, 1)
    graphs = [geometric.Data(x=torch.full((2, 1), float(i)), n=3) for i in range(2)]
    batch = geometric.Batch.from_data_list(graphs)
    executor = poptorch.inferenceModel(Model())
    batch.n = 3
    for _ in range(2):
        out, doubled = executor(batch, mixed)
        assert isinstance(out, geometric.Batch)
        assert out.x.flatten().tolist() == [3, 3, 4, 4] and out.ptr.tolist() == [0, 2, 4]
        assert doubled.flatten().tolist() == [2, 2]
    assert batch.x.flatten().tolist() == [0, 0, 1, 1]


def test_a_dataclass_of_tensors_needs_a_parser():
    @dataclass
    class Unknown:
        one: torch.Tensor
        two: torch.Tensor

    class Pairing(torch.nn.Module):
        def forward(self, x):
            return Unknown(x, x + 1) if isinstance(x, torch.Tensor) else x.one

    given = Unknown(torch.ones(2), torch.ones(2))
    for argument, what in ((torch.ones(2), "An output"), (given, "An argument")):
        with pytest.raises(poptorch.Error, match=rf"{what} of type .*Unknown.*registerCustomArgParser"):
            poptorch.inferenceModel(Pairing())(argument)


@pytest.mark.parametrize("rebatched", [None, 4])
def test_asynchronous_elements_may_hold_custom_types_and_dictionaries(rebatched):
    # A graph with its labels by task, which a loader batches.
    elements = [
        {
            "features": _pair(first, size=2),
            "labels": {"task": torch.full((2, 3), first)},
            "mask": torch.ones(2),
        }
        for first in (0.0, 10.0)
    ]
    accessor = poptorch.AsynchronousDataAccessor(elements, load_indefinitely=False, rebatched_size=rebatched)
    taken = [
        (
            got["features"].left.tolist(),
            got["features"].label,
            got["labels"]["task"][:, 2].tolist(),
            list(got),
        )
        for got in accessor
    ]
    keys = ["features", "labels", "mask"]
    if rebatched:
        assert taken == [([0, 0, 10, 10], "kept", [0, 0, 10, 10], keys)]
    else:
        assert taken == [([0, 0], "kept", [0, 0], keys), ([10, 10], "kept", [10, 10], keys)]
    accessor.terminate()
    with pytest.raises(poptorch.Error, match="failed to start"):
        poptorch.AsynchronousDataAccessor([{"labels": {"task": "text"}}])


class Encoding(UserDict):
    """A mapping that isn't a dict and has attributes besides its items, like transformers' BatchEncoding."""

    def __init__(self, items, note):
        super().__init__(items)
        self.note = note


@pytest.mark.parametrize("rebatched", [None, 4])
def test_asynchronous_elements_may_be_mappings(rebatched):
    elements = [Encoding({"ids": torch.full((2,), first)}, "kept") for first in (0, 7)]
    accessor = poptorch.AsynchronousDataAccessor(elements, load_indefinitely=False, rebatched_size=rebatched)
    taken = [(type(got), got.note, got["ids"].tolist()) for got in accessor]
    expected = [[0, 0, 7, 7]] if rebatched else [[0, 0], [7, 7]]
    assert taken == [(Encoding, "kept", ids) for ids in expected]
    assert elements[0]["ids"].tolist() == [0, 0]
