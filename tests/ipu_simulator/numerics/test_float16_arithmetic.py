"""float16 operations as on an IPU: partial sums, one rounding per operation, overflow, exceptions.

Products are compared with loops over numpy's float16 and float32 that share no code with the simulator. Their
operands are small multiples of powers of two, so that sums inside a block are exact in any order.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ipu_simulator.numerics import Arithmetic, Float16Arithmetic, FloatingPointException

FLOAT_PARTIALS = Arithmetic()
HALF_PARTIALS = Arithmetic(half_matmul_partials=True, half_convolution_partials=True)
STOPS = Arithmetic(exceptions=True)
BLOCK = 16


def operands(*shape, seed=0):
    """float16 with few bits: multiples of 1/8 in [-8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-64, 65, shape, generator=generator) / 8).half()


def blocked(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float16 [M, K] x [K, N]: exact sums of 16 products, each followed by a rounding."""
    partial = np.zeros((a.shape[0], b.shape[1]), np.float16)
    for start in range(0, a.shape[1], BLOCK):
        block = a[:, start : start + BLOCK].astype(np.float64) @ b[start : start + BLOCK].astype(np.float64)
        partial = (partial.astype(np.float64) + block).astype(np.float32).astype(np.float16)
    return partial


def computed(function, *tensors, arithmetic=HALF_PARTIALS):
    with Float16Arithmetic(arithmetic):
        return function(*tensors)


@pytest.mark.parametrize("inner", [5, 16, 17, 100, 640])
def test_half_partials_are_rounded_after_each_block(inner):
    a, b = operands(9, inner, seed=1), operands(inner, 7, seed=2)
    expected = torch.from_numpy(blocked(a.numpy(), b.numpy()))
    assert torch.equal(computed(torch.mm, a, b), expected)
    assert torch.equal(computed(torch.matmul, a.expand(3, -1, -1), b.expand(3, -1, -1))[2], expected)
    assert torch.equal(computed(torch.mv, a, b[:, 0].contiguous()), expected[:, 0])
    assert torch.equal(computed(torch.dot, a[0], b[:, 0].contiguous()), expected[0, 0])
    # With float32 partials there is one rounding, at the end.
    exact = (a.double() @ b.double()).float().half()
    assert torch.equal(computed(torch.mm, a, b, arithmetic=FLOAT_PARTIALS), exact)
    assert torch.equal(exact, expected) == (inner <= BLOCK)


@pytest.mark.parametrize("arithmetic", [FLOAT_PARTIALS, HALF_PARTIALS])
def test_a_bias_is_a_second_operation(arithmetic):
    x, weight = operands(6, 40, seed=1), operands(5, 40, seed=2)
    bias = (operands(5, seed=3).float() / 128 + 1).half()
    product = computed(torch.mm, x, weight.t(), arithmetic=arithmetic)
    linear = computed(F.linear, x, weight, bias, arithmetic=arithmetic)
    assert torch.equal(linear, (product.float() + bias.float()).half())


def test_gradients_of_a_product_are_products():
    x, weight = operands(6, 40, seed=1).requires_grad_(), operands(40, 24, seed=2).requires_grad_()
    with Float16Arithmetic(HALF_PARTIALS):
        out = torch.mm(x, weight)
        gradient = operands(6, 24, seed=3)
        out.backward(gradient)
    assert torch.equal(x.grad, torch.from_numpy(blocked(gradient.numpy(), weight.detach().t().numpy())))
    assert torch.equal(weight.grad, torch.from_numpy(blocked(x.detach().t().numpy(), gradient.numpy())))


CONVOLUTIONS = {
    "conv1d": ((2, 32, 9), (8, 16, 5), {"padding": 2, "groups": 2}),
    "strided": ((3, 6, 11), (4, 6, 3), {"padding": 1, "stride": 2, "dilation": 2}),
    "conv2d": ((2, 8, 6, 5), (6, 4, 3, 2), {"padding": (1, 0), "groups": 2, "stride": (2, 1)}),
    "pointwise": ((2, 48, 1, 7), (12, 24, 1, 1), {"groups": 2}),
    "depthwise": ((1, 5, 20), (5, 1, 7), {"padding": 3, "groups": 5}),
}


def convolve(x, weight, bias=None, **settings):
    return (F.conv1d if x.dim() == 3 else F.conv2d)(x, weight, bias, **settings)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients_with_float32_partials(name):
    """Against float64, rounded once."""
    x_shape, weight_shape, settings = CONVOLUTIONS[name]
    x, weight = operands(*x_shape, seed=1), operands(*weight_shape, seed=2)
    bias = operands(weight_shape[0], seed=3)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    wide = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    exact = convolve(*wide[:2], **settings)
    with Float16Arithmetic(FLOAT_PARTIALS):
        out = convolve(*leaves, **settings)
        gradient = operands(*out.shape, seed=4)
        out.backward(gradient)
    per_channel = bias.float().view(-1, *[1] * (out.dim() - 2))
    assert torch.equal(out, (exact.float().half().float() + per_channel).half())
    convolve(*wide, **settings).backward(gradient.double())
    for leaf, reference in zip(leaves, wide):
        assert torch.equal(leaf.grad, reference.grad.float().half())


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_with_half_partials(name):
    """The forward pass and the weight's gradient, compared with products of the receptive fields."""
    x_shape, weight_shape, settings = CONVOLUTIONS[name]
    x, weight = operands(*x_shape, seed=1), operands(*weight_shape, seed=2)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    with Float16Arithmetic(HALF_PARTIALS):
        out = convolve(*leaves, **settings)
        gradient = operands(*out.shape, seed=4)
        out.backward(gradient)
    groups = settings.get("groups", 1)
    channels, filters = weight_shape[1], weight_shape[0] // groups
    # One unit convolution gathers what each output position sees at each tap and channel.
    seen = []
    for tap in np.ndindex(*weight_shape[2:]):
        for channel in range(channels):
            unit = torch.zeros(groups, channels, *weight_shape[2:], dtype=torch.float64)
            unit[(slice(None), channel, *tap)] = 1
            seen.append(convolve(x.double(), unit, **settings))
    seen = torch.stack(seen, dim=-1)  # [B, groups, positions..., taps * channels]
    for group in range(groups):
        rows = seen[:, group].reshape(-1, seen.shape[-1]).half().numpy()
        chosen = weight[group * filters : (group + 1) * filters]
        matrix = chosen.flatten(2).transpose(1, 2).reshape(filters, -1).t().numpy()
        of_group = slice(group * filters, (group + 1) * filters)
        expected = torch.from_numpy(blocked(rows, matrix))
        found = out.detach()[:, of_group].movedim(1, -1).reshape(-1, filters)
        assert torch.equal(found, expected)
        columns = gradient[:, of_group].movedim(1, -1).reshape(-1, filters).numpy()
        expected_gradient = torch.from_numpy(blocked(rows.T.copy(), columns))
        found_gradient = leaves[1].grad[of_group].flatten(2).transpose(1, 2).reshape(filters, -1).t()
        assert torch.equal(found_gradient, expected_gradient)
    # An input's gradient: as exact as rounding each tap's share.
    wide = x.double().requires_grad_()
    convolve(wide, weight.double(), **settings).backward(gradient.double())
    torch.testing.assert_close(leaves[0].grad.double(), wide.grad, rtol=2e-3, atol=0.5)


ONCE_ROUNDED = {
    "add": lambda x: x + x * x.new_tensor(0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "log_softmax": lambda x: torch.log_softmax(x, dim=-1),
    "mean": lambda x: x.mean(dim=-1),
    "var": lambda x: x.var(dim=-1),
    "prod": lambda x: x.prod(dim=-1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "layer_norm": lambda x: F.layer_norm(x, (11,)),
    "group_norm": lambda x: F.group_norm(x.view(100, 22, 10), 2),
    "sum": lambda x: x.sum(dim=-1),
    "exp": torch.exp,
    "maximum": lambda x: x.max(dim=-1).values,
    "in place": lambda x: x.clone().sigmoid_(),
    "into": lambda x: torch.exp(x, out=torch.empty_like(x)),
}


@pytest.mark.parametrize("name", ONCE_ROUNDED)
def test_an_operation_rounds_its_result_once(name):
    function = ONCE_ROUNDED[name]
    x = torch.randn(2000, 11, generator=torch.Generator().manual_seed(1)).half()
    found = computed(function, x)
    assert found.dtype is torch.float16
    if name == "add":  # two operations
        scale = torch.tensor(0.3).half().float()
        expected = (x.float() + (x.float() * scale).half().float()).half()
    else:
        expected = function(x.float()).half()
    assert torch.equal(found, expected)


def test_gradients_are_rounded_once_too():
    """A chain of one operation, so that float32's gradient, rounded once, is the expected one."""
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).half()
    weight, bias = (1 + x[0] / 8).clone(), (x[1] / 8).clone()
    gradient = torch.randn(50, 32, generator=torch.Generator().manual_seed(2)).half()
    narrow = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    wide = [tensor.float().requires_grad_() for tensor in (x, weight, bias)]
    with Float16Arithmetic(FLOAT_PARTIALS):
        F.layer_norm(narrow[0], (32,), *narrow[1:]).backward(gradient)
    F.layer_norm(wide[0], (32,), *wide[1:]).backward(gradient.float())
    for one, other in zip(narrow, wide):
        assert torch.equal(one.grad, other.grad.half())


def test_running_statistics_follow():
    narrow, wide = torch.nn.BatchNorm1d(7).half(), torch.nn.BatchNorm1d(7)
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(1)).half()
    found = computed(narrow, x)
    assert torch.equal(found, wide(x.float()).half())
    assert torch.equal(narrow.running_mean, wide.running_mean.half())
    assert torch.equal(narrow.running_var, wide.running_var.half())
    assert narrow.num_batches_tracked == 1


def test_types_are_pytorchs():
    x, wide, scalar = torch.ones(3).half(), torch.ones(3), torch.tensor(2.0)
    assert computed(lambda: x * wide).dtype is torch.float32
    assert computed(lambda: x * scalar).dtype is torch.float16
    assert computed(lambda: x.sum(dtype=torch.float32)).dtype is torch.float32
    assert computed(lambda: x.sum() > 1).dtype is torch.bool
    assert computed(lambda: x.argmax()).dtype is torch.int64
    assert computed(lambda: torch.softmax(x, 0, dtype=torch.float32)).dtype is torch.float32
    assert computed(lambda: x.clone().mul_(wide * 1e6)).tolist() == [65504.0] * 3
    turned = computed(lambda: torch.arange(6.0).half().view(2, 3).t_().unsqueeze_(0))
    assert turned.tolist() == [[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]]
    ends = computed(lambda: torch.cat([x, x * 0.1]).split(3)[1])
    assert torch.equal(ends, (x.float() * 0.1).half())


def test_scattered_sums_round_each_addition():
    rows = torch.zeros(9, dtype=torch.int64)
    added = torch.tensor([2048.0] + [1.0] * 8).half()
    assert computed(lambda: torch.zeros(1).half().index_add_(0, rows, added)).tolist() == [2048.0]
    many = torch.full((9,), 30000.0).half()
    assert computed(lambda: torch.zeros(1).half().index_add_(0, rows, many)).tolist() == [65504.0]


def test_a_sum_that_is_too_large_is_the_largest_number():
    x = torch.tensor([60000.0, -60000.0, 1.0]).half()
    assert computed(lambda: x + x).tolist() == [65504.0, -65504.0, 2.0]
    assert computed(lambda: x * x).tolist() == [65504.0, 65504.0, 1.0]
    assert computed(torch.exp, torch.tensor([20.0]).half()).tolist() == [65504.0]
    assert computed(lambda: x.clone().mul_(2)).tolist() == [65504.0, -65504.0, 2.0]
    assert computed(lambda: torch.tensor([1e6, -1e6, 2.0]).half()).tolist() == [65504.0, -65504.0, 2.0]
    assert computed(lambda: x.clone().copy_(torch.tensor([1e6, -1e6, 2.0]))).tolist()[0] == 65504.0
    # The sum overflows, the mean doesn't.
    assert computed(torch.mean, torch.full((4,), 60000.0).half()).item() == 60000.0
    ones = torch.full((1, 4), 300.0).half()
    assert computed(torch.mm, ones, ones.t()).item() == 65504.0
    assert (
        computed(lambda: F.conv1d(ones[None], ones[:, :, None].transpose(0, 1).reshape(1, 1, 4))).item()
        == 65504.0
    )


def test_half_partials_overflow_on_the_way():
    a = torch.cat([torch.full((1, 16), 250.0), torch.full((1, 16), -250.0)], dim=1).half()
    b = torch.full((32, 1), 250.0).half()
    assert computed(torch.mm, a, b, arithmetic=FLOAT_PARTIALS).item() == 0.0
    # 16 * 250 * 250 is kept at the largest number, to which minus a million is added.
    assert computed(torch.mm, a, b).item() == -65504.0


def test_infinities_that_are_meant_stay():
    scores = torch.zeros(2, 3).half()
    mask = torch.tensor([[0.0, -math.inf, 0.0], [0.0, 0.0, -math.inf]]).half()
    assert computed(lambda: torch.softmax(scores + mask, dim=-1)).tolist() == [
        [0.5, 0.0, 0.5],
        [0.5, 0.5, 0.0],
    ]
    filled = computed(lambda: scores.masked_fill(mask.isinf(), -math.inf))
    assert torch.equal(filled.isinf(), mask.isinf())
    assert computed(lambda: 1 / torch.zeros(1).half()).isinf().all()
    assert computed(lambda: torch.zeros(1).half() / torch.zeros(1).half()).isnan().all()


STOPPING = {
    "overflow": lambda: torch.full((2,), 60000.0).half() * 2,
    "overflow in place": lambda: torch.full((2,), 60000.0).half().mul_(2),
    "overflow of a product": lambda: torch.full((1, 4), 300.0).half() @ torch.full((4, 1), 300.0).half(),
    "overflow of a convolution": lambda: F.conv1d(
        torch.full((1, 4, 1), 300.0).half(), torch.full((1, 4, 1), 300.0).half()
    ),
    "overflow of a cast": lambda: torch.full((2,), 1e6).half(),
    "overflow of a norm": lambda: torch.linalg.vector_norm(torch.full((4,), 60000.0).half()),
    "division by zero": lambda: 1 / torch.zeros(1).half(),
    "invalid": lambda: torch.zeros(1).half() / torch.zeros(1).half(),
    "invalid in float32": lambda: torch.log(torch.tensor([-1.0])),
}


@pytest.mark.parametrize("name", STOPPING)
def test_exceptions_stop_the_program_where_they_are_on(name):
    computed(STOPPING[name], arithmetic=FLOAT_PARTIALS)
    with pytest.raises(FloatingPointException, match="floating point"):
        computed(STOPPING[name], arithmetic=STOPS)


def test_half_partials_stop_at_an_overflow_too():
    both = Arithmetic(half_matmul_partials=True, half_convolution_partials=True, exceptions=True)
    ones = torch.full((1, 32), 60.0).half()
    assert computed(torch.mm, ones[:, :16], ones[:, :16].t(), arithmetic=both).item() == 57600.0
    with pytest.raises(FloatingPointException, match="overflow"):
        computed(torch.mm, ones, ones.t(), arithmetic=both)


def test_what_is_finite_passes_under_exceptions():
    def program():
        x = torch.linspace(-3, 3, 64).half().view(8, 8).requires_grad_()
        weight = (torch.eye(8) / 2).half().requires_grad_()
        mask = torch.zeros(8, 8).half().masked_fill(torch.eye(8).bool(), -math.inf)
        hidden = F.dropout(F.gelu(F.layer_norm(x @ weight, (8,))), 0.1)
        loss = (torch.softmax(hidden + mask, dim=-1) * hidden).float().sum()
        loss.backward()
        return loss, weight.grad

    loss, gradient = computed(program, arithmetic=STOPS)
    assert loss.isfinite() and gradient.isfinite().all()


def test_float32_is_left_alone():
    a, b = torch.randn(30, 40), torch.randn(40, 20)
    expected = (torch.mm(a, b), torch.softmax(a, dim=-1), (a * 1e30) * 1e30)
    found = computed(lambda: (torch.mm(a, b), torch.softmax(a, dim=-1), (a * 1e30) * 1e30))
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_what_is_added_to_a_product_may_be_broadcast(shape):
    added, matrix, vector = operands(*shape, seed=1), operands(4, 8), operands(8, seed=2)
    found = computed(torch.addmv, added, matrix, vector, arithmetic=FLOAT_PARTIALS)
    assert torch.equal(found, torch.mv(matrix.float(), vector.float()).add(added.float()).half())


# ---- GELU


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("asked", ["none", "tanh"])
@pytest.mark.parametrize(
    "function", [F.gelu, lambda x, approximate: torch.ops.aten.gelu_(x * 1, approximate=approximate)]
)
def test_gelu_is_the_tanh_form_forward_and_backward(function, asked, dtype):
    x = torch.linspace(-6, 6, 1001).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    with Float16Arithmetic(FLOAT_PARTIALS):
        result = function(x, approximate=asked)
        result.backward(torch.ones_like(result))
    tanh = 0.5 * exact * (1 + torch.tanh(math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3)))
    tanh.backward(torch.ones_like(tanh))
    close = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}  # the forms are 4.7e-4 apart
    torch.testing.assert_close(result.double(), tanh, **close)
    torch.testing.assert_close(x.grad.double(), exact.grad, **close)


def test_the_distance_between_the_forms_of_gelu():
    """The figures in docs/float16.md and docs/limits.md."""
    x = torch.linspace(-10, 10, 200_001, dtype=torch.float64).requires_grad_()
    forms = [F.gelu(x, approximate=form) for form in ("none", "tanh")]
    slopes = [torch.autograd.grad(form.sum(), x)[0] for form in forms]
    assert float((forms[0] - forms[1]).abs().max().detach()) == pytest.approx(4.7e-4, abs=5e-6)
    assert float((slopes[0] - slopes[1]).abs().max()) == pytest.approx(8.7e-4, abs=5e-6)


@pytest.mark.parametrize("fast", [False, True])
def test_a_norm_without_weights_has_its_inputs_gradient_alone(fast):
    """PyTorch then returns None for the weights' gradients."""
    x = operands(3, 4, 8, seed=1).requires_grad_()
    wide = x.detach().float().requires_grad_()
    for normed in (lambda x: F.layer_norm(x, (8,)), lambda x: F.group_norm(x, 2)):
        outward = operands(3, 4, 8, seed=2)
        with Float16Arithmetic(Arithmetic(fast=fast)):
            (found,) = torch.autograd.grad(normed(x), x, outward)
        (expected,) = torch.autograd.grad(normed(wide), wide, outward.float())
        assert found.dtype is torch.float16
        torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)
