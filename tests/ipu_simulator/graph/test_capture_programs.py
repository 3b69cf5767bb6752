"""Graphs of foreign programs: convolutions, recurrence, in-place changes, closures, custom gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.ipu_simulator.graph.programs import captured, names, options, poptorch


class WithLoss(nn.Module):
    """A network and its mean squared error."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x, y):
        out = self.network(x)
        out = out[0] if isinstance(out, tuple) else out
        return out, F.mse_loss(out, y)


CNN = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(2),
    nn.Dropout2d(0.1),
    nn.Conv2d(8, 8, 3, groups=8),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(8, 4),
)
TRANSFORMER = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
NETWORKS = {
    "cnn": (CNN, (2, 3, 16, 16), (2, 4)),
    "lstm": (nn.LSTM(4, 8, batch_first=True), (2, 5, 4), (2, 5, 8)),
    "gru": (nn.GRU(4, 8, bias=False), (2, 5, 4), (2, 5, 8)),
    "transformer": (nn.TransformerEncoder(TRANSFORMER, 1), (2, 5, 8), (2, 5, 8)),
}


def flat_options():
    return options(poptorch.ShardedExecution())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_a_gradient(name: str) -> None:
    network, inputs, labels = NETWORKS[name]
    graph = captured(WithLoss(network), torch.randn(inputs), torch.randn(labels), made=flat_options())
    assert set(graph.gradients) == {tensor.id for tensor in graph.parameters}
    # Nothing is hidden in an operation that only CPUs have.
    assert not any("mkldnn" in op.name or "flash" in op.name for op in graph.ops)


def test_a_cnn_has_the_device_s_operations() -> None:
    graph = captured(WithLoss(CNN), torch.randn(2, 3, 16, 16), torch.randn(2, 4), made=flat_options())
    assert names(graph, "forward").count("convolution") == 2
    assert names(graph, "backward").count("convolution_backward") == 2
    assert names(graph, "forward").count("native_batch_norm") == 1
    assert names(graph, "forward").count("native_dropout") == 1
    assert [op.attributes["groups"] for op in graph.ops if op.name == "convolution"] == [1, 8]


def test_what_is_changed_in_place_is_read_as_it_was_then() -> None:
    class Halves(nn.Module):
        def forward(self, x, y):
            joined = torch.zeros_like(x)
            before = joined[:, 2:]
            joined[:, :2] = x[:, :2] * 3
            return before + joined[:, 2:], F.mse_loss(joined + self.weight, y)

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    graph = captured(Halves(), torch.randn(2, 4), torch.randn(2, 4), made=flat_options())
    forward = [op for op in graph.ops if op.phase == "forward"]
    (product,) = [op for op in forward if op.name == "mul"]
    (copy,) = [op for op in forward if op.name == "copy"]
    (overwrite,) = [op for op in forward if op.name == "overwrite"]
    assert copy.inputs[1] == product.outputs[0]
    assert overwrite.inputs[1] == copy.outputs[0]
    # The copy is as large as the part that it writes, and the whole tensor is a view.
    assert graph.tensors[copy.outputs[0]].shape == (2, 2)
    zeros = [op for op in forward if op.name == "zeros_like"]
    assert graph.owner(overwrite.outputs[0]).id == zeros[0].outputs[0]
    # The sum sees the overwritten tensor.
    total = [op for op in forward if op.name == "add" and op.inputs[1] == 0]
    assert total[0].inputs[0] == overwrite.outputs[0]


def test_a_weight_held_by_a_closure_is_that_weight() -> None:
    class Closure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            weight = self.layer.weight
            self.apply_it = lambda x: F.linear(x, weight)

        def forward(self, x, y):
            return F.l1_loss(self.apply_it(x), y)

    graph = captured(Closure(), torch.randn(2, 4), torch.randn(2, 4), made=flat_options())
    assert [graph.tensors[number].name for number in graph.gradients] == ["layer.weight"]


def test_gradients_of_its_own_stand_at_its_call() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, gradient):
            x, weight = ctx.saved_tensors
            return gradient @ weight.t(), x.t() @ gradient

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            return Product.apply(x, self.weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Layer(), Layer()

        def forward(self, x, y):
            h = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
            return F.cross_entropy(self.second(h).double(), y)

    graph = captured(Model(), torch.randn(2, 4), torch.tensor([1, 3]), made=flat_options())
    assert names(graph, "backward", "second").count("mm") == 2
    assert len(graph.gradients) == 2
    # float64 and int64 are float32 and int32 on the device; a cast to the same type costs nothing.
    assert {tensor.dtype for tensor in graph.tensors} == {"float32", "int32"}
    assert "_to_copy" not in names(graph, "forward")


def test_available_memory_is_marked_on_the_product() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            h = poptorch.set_available_memory(self.first(x), 0.15)
            return F.mse_loss(self.second(h), y)

    graph = captured(Bounded(), torch.randn(2, 4), torch.randn(2, 4), made=flat_options())
    marked = {
        (op.name, op.phase, op.module): op.attributes["available_memory_proportion"]
        for op in graph.ops
        if "available_memory_proportion" in op.attributes and op.name in ("addmm", "mm")
    }
    assert marked == {("addmm", "forward", "first"): 0.15, ("mm", "backward", "first"): 0.15}


def test_what_follows_a_block_that_was_left_is_refused() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, y):
            with poptorch.Block("inside", ipu_id=0):
                x = self.layer(x)
            return F.mse_loss(x, y)

    with pytest.raises(poptorch.Error, match="No active Block"):
        captured(Outside(), torch.randn(2, 4), torch.randn(2, 4), made=options(poptorch.PipelinedExecution()))


def test_what_comes_before_the_first_block_stands_on_the_first_ipu() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = poptorch.BeginBlock(nn.Linear(4, 4), ipu_id=1)

        def forward(self, x, y):
            return F.mse_loss(self.layer((1.0 - x).exp()), y)

    pipelined = options(poptorch.PipelinedExecution())
    pipelined.Training.gradientAccumulation(3)
    graph = captured(Encoder(), torch.randn(2, 4), torch.randn(2, 4), made=pipelined)
    stages = {op.name: op.stage for op in graph.ops if op.phase == "forward"}
    assert (stages["exp"], stages["addmm"]) == (0, 1)


def test_a_layer_on_the_host_needs_values() -> None:
    class Host(nn.Module):
        """Its control flow depends on values."""

        def forward(self, x):
            return torch.tanh(x) if bool((x > -1e9).all()) else torch.sigmoid(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)
            self.host = poptorch.CPU(Host(), "host")

        def forward(self, x, y):
            return F.mse_loss(self.layer(self.host(self.norm(x))), y)

    model = Model()
    inputs = torch.ones(2, 4), torch.ones(2, 4)
    with pytest.raises(RuntimeError):
        captured(model, *inputs, made=flat_options())
    graph = captured(model, *inputs, made=flat_options(), with_values=True)
    assert "tanh" in names(graph, "forward") and "sigmoid" not in names(graph, "forward")
    assert len(graph.gradients) == 4
    # Statistics move in copies alone.
    assert model.norm.num_batches_tracked == 0 and torch.equal(model.norm.running_mean, torch.zeros(4))
    assert model.layer.weight.grad is None


@pytest.mark.parametrize("name", NETWORKS)
def test_values_change_nothing_elsewhere(name: str) -> None:
    network, inputs, labels = NETWORKS[name]
    tensors = torch.randn(inputs), torch.randn(labels)
    fake = captured(WithLoss(network), *tensors, made=flat_options())
    assert captured(WithLoss(network), *tensors, made=flat_options(), with_values=True) == fake


def test_a_type_that_no_ipu_has_is_refused() -> None:
    class Complex(nn.Module):
        def forward(self, x, y):
            return F.mse_loss(x.to(torch.complex64).real, y)

    with pytest.raises(ValueError, match=r"torch\.complex64"):
        captured(Complex(), torch.randn(2, 4), torch.randn(2, 4), made=flat_options())


def test_transformers_are_captured() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.masked_lm = transformers.BertForMaskedLM(config)
            poptorch.BeginBlock(self.masked_lm.bert.embeddings, ipu_id=0)
            poptorch.BeginBlock(self.masked_lm.bert.encoder.layer[1], ipu_id=1)

        def forward(self, input_ids, labels):
            return self.masked_lm(input_ids=input_ids, labels=labels).loss

    ids = torch.randint(0, 50, (2, 16))
    graph = captured(Model(), ids, ids)
    assert set(graph.gradients) == {tensor.id for tensor in graph.parameters}
    assert graph.stage_ipus == (0, 1)
    of_layer = [op for op in graph.ops if op.module.startswith("masked_lm.bert.encoder.layer.1")]
    assert {op.stage for op in of_layer} == {1}
    assert [graph.tensors[number].name for number in graph.inputs] == ["input_ids", "labels"]


def test_what_depends_on_shapes_alone_is_a_constant_unless_it_is_drawn_or_written() -> None:
    class Model(nn.Module):
        def forward(self, x):
            known = torch.full_like(x, 2.0) + torch.zeros_like(x)
            drawn = torch.rand(3)
            written = torch.ones_like(x).add_(x)
            return x * known + drawn + written

    graph = captured(Model(), torch.randn(2, 3), training=False, made=flat_options())
    kept = names(graph, "forward")
    assert not {"full_like", "zeros_like"} & set(kept)
    assert kept.count("ones_like") == kept.count("uniform") + kept.count("rand") == 1
    assert kept.count("mul") == 1 and kept.count("add") == 3  # x * known, two sums, and the one in place


def test_a_masked_softmax_is_a_softmax() -> None:
    """PyTorch's attention has another name for one that is safe where everything is masked."""

    class Model(nn.Module):
        def forward(self, q, mask):
            return F.scaled_dot_product_attention(q, q, q, mask)

    inputs = torch.randn(1, 2, 5, 4), torch.zeros(5, 5)
    kept = names(captured(Model(), *inputs, training=False, made=flat_options()), "forward")
    assert kept.count("_softmax") == 1 and "_safe_softmax" not in kept
