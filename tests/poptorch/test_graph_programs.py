"""Small programs on PyTorch Geometric's graphs train as they do in a plain PyTorch loop.

They use the private names of PopTorch that Graphcore's library for graphs (poptorch_geometric) is built on:
parsers of arguments, combined batches, and substituted functions.
"""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F

from tests.poptorch.executor_models import poptorch

geometric = pytest.importorskip("torch_geometric", reason="PyTorch Geometric isn't installed")
from torch_geometric import nn  # noqa: E402
from torch_geometric.data import Batch, Data, HeteroData  # noqa: E402

args_parser = importlib.import_module("poptorch._args_parser")

CLASSES, FEATURES = 3, 4


@pytest.fixture(autouse=True)
def parsers():
    poptorch.registerGeometricCustomArgParsers()
    torch.manual_seed(0)


def graph(nodes: int, edges: int, generator: torch.Generator) -> Data:
    return Data(
        x=torch.randn(nodes, FEATURES, generator=generator),
        edge_index=torch.randint(0, nodes, (2, edges), generator=generator),
        y=torch.randint(0, CLASSES, (1,), generator=generator),
    )


def graphs(count: int) -> list[Data]:
    generator = torch.Generator().manual_seed(1)
    return [graph(3 + i % 4, 4 + i % 5, generator) for i in range(count)]


def padded(samples: list[Data], nodes: int = 16, edges: int = 20) -> Batch:
    """A batch with one more graph, which fills it up to fixed numbers of nodes and edges."""
    missing = nodes - sum(sample.num_nodes for sample in samples)
    filling = Data(
        x=torch.zeros(missing, FEATURES),
        edge_index=torch.zeros(2, edges - sum(sample.num_edges for sample in samples), dtype=torch.long),
        y=torch.full((1,), -100),
    )
    return Batch.from_data_list([*samples, filling])


def trained(model, options, batches, micro_batches, split):
    """Trains a copy by a plain loop over micro batches, and the model on the device; both must agree."""
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    expected = []
    for batch in batches:
        optimizer.zero_grad()
        losses = [reference(*part)[1] for part in split(batch)]
        assert len(losses) == micro_batches
        torch.stack(losses).mean().backward()
        expected.append(losses[-1].detach())
        optimizer.step()
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    found = [executor(*batch)[1].reshape(()) for batch in batches]
    assert torch.allclose(torch.stack(found), torch.stack(expected), atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), reference.parameters()))
    return executor


def options(accumulation: int = 1):
    made = poptorch.Options()
    made.Training.gradientAccumulation(accumulation)
    return made


class NodeClassifier(torch.nn.Module):
    """Two convolutions on one graph, whose training nodes are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GCNConv(FEATURES, 8, add_self_loops=False)
        self.second = nn.SAGEConv(8, CLASSES)

    def forward(self, x, edge_index, y, mask):
        out = self.second(self.first(x, edge_index).relu(), edge_index)
        losses = F.cross_entropy(out, y, reduction="none") * mask
        return out, poptorch.identity_loss(losses.sum() / mask.sum(), "none")


def test_node_classification_on_one_graph():
    data = graph(10, 30, torch.Generator().manual_seed(2))
    labels, mask = torch.arange(10) % CLASSES, (torch.arange(10) < 6).float()
    batch = (data.x, data.edge_index, labels, mask)
    trained(NodeClassifier(), options(), [batch] * 3, 1, lambda whole: [whole])


class GraphClassifier(torch.nn.Module):
    """An isomorphism network with pooling over each graph of a batch of fixed size."""

    def __init__(self, graphs_per_batch: int) -> None:
        super().__init__()
        layers = torch.nn.Sequential(torch.nn.Linear(FEATURES, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
        self.convolution = nn.GINConv(layers)
        self.head = torch.nn.Linear(8, CLASSES)
        self.size = graphs_per_batch

    def forward(self, batch):
        hidden = self.convolution(batch.x, batch.edge_index).relu()
        out = self.head(nn.global_add_pool(hidden, batch.batch, size=self.size))
        return out, F.cross_entropy(out, batch.y)


@pytest.mark.parametrize("mode", list(poptorch.DataLoaderMode)[:2])
def test_graph_classification_on_batches_of_fixed_size(mode):
    sampler = [[0, 5], [2, 3], [1, 7], [4, 6]]
    made = options(2)
    loader = poptorch.DataLoader(made, graphs(8), batch_sampler=sampler, collate_fn=padded, mode=mode)
    batches = [(copy.copy(batch).clone(),) for batch in loader]
    assert len(batches) == 2 and isinstance(batches[0][0], Batch)
    assert batches[0][0].x.shape == (32, FEATURES) and batches[0][0].y.shape == (6,)

    def split(whole):
        which = next(i for i, (batch,) in enumerate(batches) if batch is whole[0])
        return [(padded([graphs(8)[k] for k in sampler[2 * which + step]]),) for step in range(2)]

    trained(GraphClassifier(3), made, batches, 2, split)


class LinkPredictor(torch.nn.Module):
    """Scores of edges by the products of their nodes' embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GraphConv(FEATURES, 8)

    def forward(self, data, edges, labels):
        z = self.encoder(data.x, data.edge_index)
        out = (z[edges[0]] * z[edges[1]]).sum(-1)
        return out, F.binary_cross_entropy_with_logits(out, labels)


def test_link_prediction():
    data = graph(8, 20, torch.Generator().manual_seed(3))
    edges = torch.cat([data.edge_index[:, :5], torch.randint(0, 8, (2, 5))], dim=1)
    batch = (data, edges, torch.tensor([1.0] * 5 + [0.0] * 5))
    trained(LinkPredictor(), options(), [batch] * 2, 1, lambda whole: [whole])


class Hetero(torch.nn.Module):
    """Messages along two types of edges between two types of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.HeteroConv(
            {
                ("paper", "cites", "paper"): nn.SAGEConv((FEATURES, FEATURES), 8),
                ("author", "writes", "paper"): nn.SAGEConv((FEATURES, FEATURES), 8),
            }
        )
        self.head = torch.nn.Linear(8, CLASSES)

    def forward(self, data):
        hidden = self.convolution(data.x_dict, data.edge_index_dict)["paper"].relu()
        out = self.head(hidden)
        return out, F.cross_entropy(out, data["paper"].y)


def test_a_heterogeneous_graph():
    data = HeteroData()
    data["paper"].x, data["author"].x = torch.randn(6, FEATURES), torch.randn(3, FEATURES)
    data["paper"].y = torch.arange(6) % CLASSES
    data["paper", "cites", "paper"].edge_index = torch.randint(0, 6, (2, 12))
    data["author", "writes", "paper"].edge_index = torch.stack([torch.arange(6) % 3, torch.arange(6)])
    trained(Hetero(), options(), [(data,)] * 2, 1, lambda whole: [whole])


class Attention(torch.nn.Module):
    """Attention over neighbours with features of edges, dropout off, and a norm over the graph's nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.GATv2Conv(FEATURES, 4, heads=2, edge_dim=1, add_self_loops=False)
        self.norm = nn.GraphNorm(8)
        self.head = nn.MLP([8, 8, CLASSES], norm=None)

    def forward(self, batch, distances):
        hidden = self.norm(self.convolution(batch.x, batch.edge_index, distances), batch.batch, 2)
        out = self.head(nn.global_mean_pool(hidden, batch.batch, size=2))
        return out, F.cross_entropy(out, batch.y)


def test_attention_with_features_of_edges():
    batch = padded(graphs(1), nodes=8, edges=10)
    distances = torch.rand(10, 1)
    trained(Attention(), options(), [(batch, distances)] * 2, 1, lambda whole: [whole])


class Points(torch.nn.Module):
    """A point cloud: farthest points, and the nearest of them for every point."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.PointNetConv(torch.nn.Linear(FEATURES + 3, 8), add_self_loops=False)
        self.head = torch.nn.Linear(8, CLASSES)

    def forward(self, x, positions, y):
        chosen = nn.fps(positions, torch.zeros(len(positions), dtype=torch.long), 0.5, False)
        centre = nn.nearest(positions, positions[chosen], None, None)
        edges = torch.stack([torch.arange(len(positions)), centre])
        hidden = self.convolution((x, None), (positions, positions[chosen]), edges)
        out = self.head(hidden.amax(0, keepdim=True))
        return out, F.cross_entropy(out, y)


class ClusterFunctions:
    """Replaces functions of the library's C++ package by PopTorch's, as Graphcore's library does."""

    def __enter__(self) -> None:
        self._originals = nn.fps, nn.nearest

        def fps(points, batch, ratio, random_start):
            return poptorch.fps(points, [0, len(points)], ratio, random_start).long()

        def nearest(x, y, batch_x, batch_y):
            return poptorch.nearest(x, y, batch_x, batch_y).long()

        nn.fps, nn.nearest = fps, nearest

    def __exit__(self, *error: object) -> None:
        nn.fps, nn.nearest = self._originals


def test_a_point_cloud_with_substituted_functions():
    poptorch._poplar_executor._OverwriteContextManager.registerSubsitutionManager(ClusterFunctions)
    batch = (torch.randn(8, FEATURES), torch.randn(8, 3), torch.tensor([2]))
    originals = nn.fps, nn.nearest
    model = Points()
    with ClusterFunctions():
        expected = copy.deepcopy(model)(*batch)[1]
    executor = poptorch.trainingModel(model, options())
    assert torch.allclose(executor(*batch)[1], expected, atol=1e-6)
    assert (nn.fps, nn.nearest) == originals


def test_graphs_are_parsed_and_combined_as_the_library_does():
    model = GraphClassifier(2)
    batches = [padded(graphs(1), 8, 10) for _ in range(2)]
    parsed = args_parser.ArgsParser(model)((batches[0],), {})
    (given,) = parsed.asTuple()
    assert torch.equal(given.x, batches[0].x)
    tensors = [list(poptorch.flattenTensorStructure(batch)) for batch in batches]
    combined = list(poptorch._utils.combine_batch_tensors_gen(tensors))
    whole = poptorch.reconstructTensorStructure(batches[0], combined)
    assert isinstance(whole, Batch) and whole.x.shape == (16, FEATURES)
    assert torch.equal(whole.edge_index, torch.cat([batch.edge_index for batch in batches]))
