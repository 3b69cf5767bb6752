"""Mixed float16 and float32 operands, and numbers beyond float16's range, which PyTorch refuses."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import poptorch

HALF = torch.float16
ROWS = torch.tensor([2, 0])


class Runs(torch.nn.Module):
    """Any function of (float16 tensor, float32 tensor) as a forward."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, narrow, wide):
        return self.function(narrow, wide)


def computed(function, narrow, wide):
    """The second call's result: the first one compiles."""
    executor = poptorch.inferenceModel(Runs(function))
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
        lambda a, b: torch.lerp(a, b, 0.5),
        lambda a, b: a.index_copy(0, ROWS, b[:2]),
        lambda a, b: a.index_add(0, ROWS, b[:2]),
        lambda a, b: a.scatter(0, ROWS.expand(4, 2).t(), b),
        lambda a, b: a.scatter_add(0, ROWS.expand(4, 2).t(), b),
        lambda a, b: torch.inner(a, b),
        lambda a, b: torch.nn.functional.huber_loss(a, b),
        lambda a, b: torch.nn.functional.binary_cross_entropy_with_logits(a, b),
        lambda a, b: torch.nn.functional.soft_margin_loss(a, b),
        lambda a, b: torch.nn.functional.cross_entropy(a, ROWS.repeat(2), weight=b[0].abs() + 1),
        lambda a, b: torch.nn.functional.prelu(a, b[0, :1]),
    ],
)
def test_a_mixture_computes_in_float32(function, operands):
    narrow, wide = operands
    result = computed(function, narrow, wide)
    assert result.dtype is torch.float32
    assert torch.equal(result, function(narrow.float(), wide))


def test_an_index_of_32_bits_copies(operands):
    narrow, wide = operands
    result = computed(lambda _, b: b.index_copy(0, ROWS.int(), b[:2]), narrow, wide)
    assert torch.equal(result, wide.index_copy(0, ROWS, wide[:2]))


def test_in_place_the_first_operand_keeps_its_type(operands):
    narrow, wide = operands
    result = computed(lambda a, b: a.clone().index_add_(0, ROWS, b[:2]), narrow, wide)
    assert result.dtype is HALF
    assert torch.equal(result, narrow.float().index_add(0, ROWS, wide[:2]).half())


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
        torch.nn.functional.pdist,
        lambda a: torch.nn.functional.avg_pool3d(a[None].expand(2, 4, 4)[None], 2),
        lambda a: torch.special.log_ndtr(a),
        lambda a: torch.quantile(a, 0.25),
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
    recurrent = layer(4, 3, bidirectional=True)
    x = (narrow if weights == "float32" else wide)[:, None]
    expected = recurrent(x.float())[0].detach()
    if weights == "float16":
        recurrent.half()
    result = computed(lambda x, _: recurrent(x)[0], x, wide)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=5e-3)
    with pytest.raises((RuntimeError, ValueError)):
        recurrent(x)  # on the host PyTorch's rule applies


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d, torch.nn.InstanceNorm1d])
@pytest.mark.parametrize(
    ("x_type", "weight_type", "statistics_type", "result_type"),
    [
        ("half", "half", "float", HALF),
        ("half", "float", "float", torch.float32),
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
