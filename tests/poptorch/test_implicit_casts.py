"""Mixed float16 and float32 operands, and numbers beyond float16's range, which PyTorch refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.poptorch.executor_models import poptorch

HALF = torch.float16
ROWS = torch.tensor([2, 0])


class Runs(torch.nn.Module):
    """Any function of (float16 tensor, float32 tensor) as a forward, which uses these modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function = function
        self.modules_used = torch.nn.ModuleList(modules)

    def forward(self, narrow, wide):
        return self.function(narrow, wide)


def computed(function, narrow, wide, *modules):
    """The second call's result: the first one compiles."""
    executor = poptorch.inferenceModel(Runs(function, *modules))
    executor(narrow, wide)
    return executor(narrow, wide)


@pytest.fixture
def operands():
    # Multiples of 1/8, so that every sum and product below is exact in both types.
    generator = torch.Generator().manual_seed(0)
    narrow, wide = torch.randint(-16, 16, (2, 4, 4), generator=generator) / 8
    return narrow.half(), wide


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a.scatter(0, ROWS.to(a.device).expand(4, 2).t(), b),
        lambda a, b: a.scatter_add(0, ROWS.to(a.device).expand(4, 2).t(), b),
        lambda a, b: torch.inner(a, b),
        lambda a, b: torch.nn.functional.binary_cross_entropy_with_logits(a, b),
        lambda a, b: torch.nn.functional.soft_margin_loss(a, b),
        lambda a, b: torch.nn.functional.prelu(a, b[0, :1]),
    ],
)
def test_a_mixture_computes_in_float32(function, operands):
    narrow, wide = operands
    result = computed(function, narrow, wide)
    assert result.dtype is torch.float32
    assert torch.equal(result, function(narrow.float(), wide))


# Layers with weights give their first operand's type: (layer, shape of its input).
LAYERS = {
    "linear": (nn.Linear(8, 8), (4, 8)),
    "linear without bias": (nn.Linear(8, 8, bias=False), (2, 4, 8)),
    "several layers": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), (4, 2, 8)),
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 8)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 2, 3), (1, 2, 4, 4, 4)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 8)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 2, 3), (1, 4, 3, 3, 3)),
    "layer_norm": (nn.LayerNorm(8), (2, 4, 8)),
    "group_norm": (nn.GroupNorm(2, 4), (2, 4, 8)),
    "batch_norm": (nn.BatchNorm1d(4), (2, 4, 8)),
    "instance_norm": (nn.InstanceNorm1d(4, affine=True), (2, 4, 8)),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 4, 8)),
}


@pytest.mark.parametrize("precision", ["float32", "ipu-float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_its_first_operands_type(name, precision, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
    layer, shape = copy.deepcopy(LAYERS[name][0]), LAYERS[name][1]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(layer)(x.half().float()).detach()
    executor = poptorch.inferenceModel(layer)
    for _ in range(2):  # the first call compiles
        from_half = executor(x.half())
        assert from_half.dtype is HALF
        torch.testing.assert_close(from_half.float(), expected, rtol=2e-3, atol=2e-3)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
    layer = layer.half()
    from_float = poptorch.inferenceModel(layer)(x)
    assert from_float.dtype is torch.float32
    torch.testing.assert_close(from_float, copy.deepcopy(layer).float()(x).detach(), rtol=1e-5, atol=1e-5)


def test_weights_are_rounded_to_the_type_of_a_product(operands):
    """Small integers and 1 + 2^-11, which float16 rounds to 1."""
    narrow, _ = operands
    weight = torch.full((4, 4), 1 + 2.0**-11)
    result = computed(torch.nn.functional.linear, narrow, weight)
    assert torch.equal(result, (narrow.float() @ torch.ones(4, 4)).half())


class Trained(nn.Module):
    """float32 layers on float16 activations; the loss is float32's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.LayerNorm(4)),
            *(nn.Flatten(), nn.Linear(16, 3)),
        )
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x, y):
        out = self.body(x)
        return out, self.loss(out.float(), y)


@pytest.mark.parametrize("precision", ["float32", "ipu-float16"])
def test_float32_weights_train_on_float16_activations(precision, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
    torch.manual_seed(0)
    model = Trained()
    reference = copy.deepcopy(model)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.125)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    x, y = torch.randn(6, 2, 6), torch.arange(6) % 3
    step = torch.optim.SGD(reference.parameters(), lr=0.125)
    for _ in range(3):
        out, _ = executor(x.half(), y)
        step.zero_grad()
        reference(x, y)[1].backward()
        step.step()
    assert out.dtype is HALF
    for found, expected in zip(model.parameters(), reference.parameters()):
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-2, atol=1e-2)
    for found, expected in zip(model.buffers(), reference.buffers()):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(torch.__version__ < "2.3", reason="a graph needs torch 2.3")
def test_the_graph_of_a_verdict_has_the_same_types():
    from poptorch import simulator

    model, inputs = Trained(), (torch.zeros(6, 2, 6).half(), torch.zeros(6, dtype=torch.int64))
    mixed = simulator.capture(model, inputs, {}, poptorch.Options(), training=True)
    narrow = simulator.capture(model.half(), inputs, {}, poptorch.Options(), training=True)

    def types(graph):
        return [
            (op.name, [graph.tensors[number].dtype for number in op.outputs])
            for op in graph.ops
            if op.name in ("convolution", "native_group_norm", "relu", "native_layer_norm", "addmm")
        ]

    assert len(types(mixed)) == 5
    assert types(mixed) == types(narrow)


def test_an_index_of_32_bits_scatters(operands):
    narrow, wide = operands
    index = ROWS.expand(4, 2).t()
    result = computed(lambda _, b: b.scatter(0, index.int().to(b.device), b[:2]), narrow, wide)
    assert torch.equal(result, wide.scatter(0, index, wide[:2]))


def test_in_place_the_first_operand_keeps_its_type(operands):
    narrow, wide = operands
    index = ROWS.expand(4, 2).t()
    result = computed(lambda a, b: a.clone().scatter_add_(0, index.to(a.device), b[:2]), narrow, wide)
    assert result.dtype is HALF
    assert torch.equal(result, narrow.float().scatter_add(0, index, wide[:2]).half())


def test_a_mixture_that_only_the_forward_makes(operands):
    _, wide = operands
    assert torch.equal(computed(lambda a, b: a.half() @ b, wide, wide), wide @ wide)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, _: a.masked_fill(a > 0, -1e9),
        lambda a, _: a.masked_fill(a > 0, -(10**9)),
        lambda a, _: a.clone().masked_fill_(a > 0, torch.finfo(torch.float32).min),
        lambda a, b: a.masked_fill(a > 0, torch.tensor(-1e9)),
        lambda a, _: torch.where(a > 0, torch.full((4, 4), -1e9, dtype=HALF), a),
    ],
)
def test_a_number_too_large_for_float16_becomes_the_largest(function, operands):
    narrow, wide = operands
    result = computed(function, narrow, wide)
    assert torch.equal(result, torch.where(narrow > 0, torch.full_like(narrow, -65504.0), narrow))


def test_infinities_and_float32_stay(operands):
    narrow, wide = operands
    assert computed(lambda a, _: a.masked_fill(a == a, -torch.inf), narrow, wide).isneginf().all()
    assert (computed(lambda _, b: b.masked_fill(b == b, -1e9), narrow, wide) == -1e9).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda a: torch.cdist(a, a),
        lambda a: torch.nn.functional.local_response_norm(a[None], 2),
        lambda a: torch.nn.functional.rrelu(a),
        lambda a: torch.nn.functional.ctc_loss(
            a[:, None].log_softmax(-1),
            torch.ones(1, 1, dtype=torch.int64),
            torch.tensor([4]),
            torch.tensor([1]),
        ),
    ],
)
def test_what_has_no_float16_kernel_on_a_cpu_computes(function, operands):
    narrow, wide = operands
    result = computed(lambda a, _: function(a), narrow, wide)
    assert result.dtype is HALF
    torch.testing.assert_close(result.float(), function(narrow.float()), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    "function",
    [
        lambda a: torch.nn.functional.avg_pool3d(a[None].expand(2, 4, 4)[None], 2),
        lambda a: torch.nn.functional.adaptive_avg_pool3d(a[None].expand(2, 4, 4)[None], 1),
    ],
)
def test_what_a_cpu_refuses_in_float16_computes(function, operands):
    narrow, wide = operands
    result = computed(lambda a, _: function(a), narrow, wide)
    assert result.dtype is HALF
    torch.testing.assert_close(result.float(), function(narrow.float()), rtol=1e-2, atol=1e-2)


def test_what_is_wrong_in_every_type_stays_wrong(operands):
    narrow, wide = operands
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        computed(lambda a, b: a @ b[:3], narrow, wide)


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize("weights", ["float16", "float32"])
def test_a_recurrent_layer_takes_the_other_float_type(layer, weights, operands):
    narrow, wide = operands
    recurrent = layer(4, 3)
    x = (narrow if weights == "float32" else wide)[:, None]
    expected = recurrent(x.float())[0].detach()
    if weights == "float16":
        recurrent.half()
    result = computed(lambda x, _: recurrent(x)[0], x, wide, recurrent)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=5e-3)
    with pytest.raises((RuntimeError, ValueError)):
        recurrent(x)  # on the host PyTorch's rule applies


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d, torch.nn.InstanceNorm1d])
@pytest.mark.parametrize(
    ("x_type", "weight_type", "statistics_type", "result_type"),
    [
        ("half", "half", "float", HALF),
        ("half", "float", "float", HALF),
        ("half", "float", "half", HALF),
        ("float", "float", "half", torch.float32),
        ("float", "half", "half", torch.float32),
    ],
)
def test_running_statistics_keep_their_type_and_are_updated(
    layer, x_type, weight_type, statistics_type, result_type
):
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    norm, reference = (layer(3, affine=True, track_running_stats=True) for _ in range(2))
    for tensor, kind in (
        (norm.weight, weight_type),
        (norm.bias, weight_type),
        (norm.running_mean, statistics_type),
        (norm.running_var, statistics_type),
    ):
        tensor.data = getattr(tensor.data, kind)()
    executor = poptorch.inferenceModel(torch.nn.Sequential(norm))
    for _ in range(2):
        result = executor(getattr(x, x_type)())
        expected = reference(x).detach()
    assert result.dtype is result_type
    torch.testing.assert_close(result.float(), expected, rtol=1e-2, atol=1e-2)
    executor.copyWeightsToHost()
    for name in ("running_mean", "running_var"):
        found = getattr(norm, name)
        assert str(found.dtype) == str(getattr(torch, statistics_type))
        torch.testing.assert_close(found.float(), getattr(reference, name), rtol=1e-2, atol=1e-2)
