"""IPU_SIMULATOR_PRECISION=bfloat16: products in bfloat16, for any program; the rest in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ipu_simulator import environment, host
from ipu_simulator.numerics import bfloat16 as numerics_bfloat16
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ipu
from tests.poptorch.executor_models import options, poptorch

# Rounding to 8 bits of mantissa is 2^-9 of a number at most; products of a few layers add up.
TOLERANCE = 0.03
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")


@pytest.fixture
def bfloat16(monkeypatch):
    def switch(on=True):
        monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "bfloat16" if on else "float32")

    return switch


class Products(TorchDispatchMode):
    """Types of the operands of each product, and the casts of float32 tensors to bfloat16, by shape."""

    def __init__(self):
        super().__init__()
        self.types, self.casts = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.types.append({arg.dtype for arg in args if isinstance(arg, torch.Tensor)})
        if name == "_to_copy" and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.casts.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


class Model(nn.Module):
    """A forward with weights, for x [4, 8, 16]."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self._forward = forward

    def forward(self, x):
        out = self._forward(self.layers, x)
        return out, poptorch.identity_loss((out.float() ** 2).mean(), "none")


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def writes_weight(m, x):
    y = m["lin"](x)
    with torch.no_grad():
        m["lin"].weight.mul_(0.5)
    return F.linear(x, m["lin"].weight.detach()) + y


def in_place(m, x):
    x = m["first"](x)
    y = torch.zeros(4, 8, 32)
    y[:, :, 16:] = x
    x += 1
    return m["second"](x.relu_()) + y


def attention(m, x, **more):
    q, k, v = (h.view(4, 8, 2, 8).transpose(1, 2) for h in m["qkv"](x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, **more).transpose(1, 2).reshape(4, 8, 16)


def masked(m, x):
    q, k, v = m["qkv"](x).split(16, -1)
    scores = q @ k.transpose(-1, -2) / 4
    hidden = torch.arange(8) > 5
    scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
    scores = scores + torch.where(torch.arange(4)[:, None, None] > 2, torch.finfo(torch.float32).min, 0.0)
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


def residual(m, x):
    h = m["norm"](x)
    for _ in range(2):
        h = h + m["out"](F.gelu(m["in"](h)))
    return m["norm"](h)


def convolves(m, x):
    y = F.silu(m["norm"](m["conv"](x.transpose(1, 2)).transpose(1, 2)))
    return y.reshape(4, -1).view(4, 8, 16) * m["norm"].weight


def scatters(m, x):
    y = m["lin"](x)
    out = torch.zeros_like(x).scatter_add(1, torch.arange(8).view(1, 8, 1).expand(4, 8, 16), y)
    out = out.index_put((torch.tensor([1]),), y[:1])
    return torch.cat([out, y], -1).cumsum(1) + torch.einsum("bsh,bth->bst", y, y).mean(-1, keepdim=True)


def vision(m, x):
    y = m["bn"](m["conv"](x.view(4, 2, 8, 8)))
    y = F.max_pool2d(F.relu(y, inplace=True), 2)
    return m["up"](y).flatten(1)


MODELS = {
    "residual": lambda: Model(
        residual, norm=nn.LayerNorm(16), **{"in": nn.Linear(16, 64), "out": nn.Linear(64, 16)}
    ),
    "attention": lambda: Model(attention, qkv=nn.Linear(16, 48)),
    "mask": lambda: Model(
        lambda m, x: attention(m, x, attn_mask=torch.arange(8)[None] < 6, scale=0.3), qkv=nn.Linear(16, 48)
    ),
    "masks": lambda: Model(masked, qkv=nn.Linear(16, 48)),
    "multi_head": lambda: Model(
        lambda m, x: m["mha"](x, x, x, need_weights=False)[0],
        mha=nn.MultiheadAttention(16, 2, batch_first=True),
    ),
    "transformer": lambda: Model(
        lambda m, x: m["layer"](x), layer=nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    ),
    "convolution": lambda: Model(
        convolves, conv=nn.Conv1d(16, 16, 3, padding=1, groups=4), norm=nn.LayerNorm(16)
    ),
    "vision": lambda: Model(
        vision, conv=nn.Conv2d(2, 4, 3), bn=nn.BatchNorm2d(4), up=nn.ConvTranspose2d(4, 2, 2)
    ),
    "scatters": lambda: Model(scatters, lin=nn.Linear(16, 16)),
    "in_place": lambda: Model(in_place, first=nn.Linear(16, 16), second=nn.Linear(16, 32)),
    "writes_weight": lambda: Model(writes_weight, lin=nn.Linear(16, 16)),
    "own_gradient": lambda: Model(lambda m, x: Doubled.apply(m["lin"](x)), lin=nn.Linear(16, 16)),
    "lstm": lambda: Model(lambda m, x: m["out"](m["lstm"](x)[0]), lstm=nn.LSTM(16, 8), out=nn.Linear(8, 4)),
    "half": lambda: Model(lambda m, x: m["lin"](x.half()).float(), lin=nn.Linear(16, 16).half()),
    "autocast": lambda: Model(
        lambda m, x: torch.autocast("cpu", torch.bfloat16)(m["lin"])(m["lin"](x)).float(),
        lin=nn.Linear(16, 16),
    ),
    "no_grad": lambda: Model(
        lambda m, x: m["lin"](x) + torch.no_grad()(m["lin"])(m["lin"](x)), lin=nn.Linear(16, 16)
    ),
    "frozen": lambda: Model(
        lambda m, x: m["a"](m["b"].requires_grad_(False)(x)), a=nn.Linear(16, 16), b=nn.Linear(16, 16)
    ),
}


def results(make, x, opts=None):
    """Outputs of two updates, and the weights after them."""
    torch.manual_seed(0)
    model = make()
    executor = poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.1))
    outputs = [executor(x)[0] for _ in range(2)]
    inferred = poptorch.inferenceModel(model.eval())(x)[0]
    return [*outputs, inferred], [weight.detach().clone() for weight in model.parameters()]


def distance(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1e-6))


@pytest.mark.parametrize("name", MODELS)
def test_a_program_computes_in_bfloat16_what_it_computes_in_float32(name, bfloat16):
    torch.manual_seed(1)
    x = torch.randn(4, 8, 16)
    bfloat16(False)
    outputs, weights = results(MODELS[name], x)
    bfloat16()
    rounded_outputs, rounded_weights = results(MODELS[name], x)
    for rounded, exact in zip([*rounded_outputs, *rounded_weights], [*outputs, *weights]):
        assert rounded.dtype is exact.dtype and rounded.stride() == exact.stride()
        assert distance(rounded.float(), exact.float()) < TOLERANCE
    assert name == "half" or any(map(torch.ne, rounded_outputs[1].flatten(), outputs[1].flatten()))


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"half", "lstm"}))
def test_all_products_forward_and_backward_are_in_bfloat16(name, bfloat16):
    bfloat16()
    model = MODELS[name]()
    executor = poptorch.trainingModel(model, None, poptorch.optim.SGD(model.parameters(), lr=0.5))
    x = torch.randn(4, 8, 16)
    executor(x)
    with Products() as products:
        executor(x)
    assert products.types and all(types == {torch.bfloat16} for types in products.types)


@pytest.mark.parametrize("is_replayed", [True, False])
def test_a_weight_is_rounded_once_an_update(is_replayed, bfloat16):
    bfloat16()

    def forward(m, x):
        return residual(m, x if is_replayed else Doubled.apply(x))

    layers = {"in": nn.Linear(16, 64), "out": nn.Linear(64, 16)}
    model = Model(forward, norm=nn.LayerNorm(16), **layers)  # uses each of its two weights twice
    opts = options(iterations=2, accumulation=3)
    executor = poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.5))
    x = torch.randn(24, 8, 16)
    executor(x)
    with Products() as products:
        executor(x)
    assert products.casts.count((64, 16)) == products.casts.count((16, 64)) == 2


@pytest.mark.parametrize(
    "channels, kernel, more",
    [
        (16, 7, {"padding": 3, "groups": 4}),
        (16, 3, {"padding": "same", "dilation": 2}),
        (32, 1, {"groups": 8, "bias": False}),
        (16, 5, {"padding": (2,), "stride": (2,), "groups": 16}),
        (8, 3, {"padding": "valid", "stride": 3}),
    ],
)
def test_a_convolution_of_tokens_needs_no_transposition(channels, kernel, more, bfloat16):
    """Of [B, S, C] transposed to [B, C, S], as programs call nn.Conv1d; PyTorch's own would copy it."""
    bfloat16()
    torch.manual_seed(0)
    model = Model(
        lambda m, x: m["conv"](x.transpose(1, 2)).transpose(1, 2),
        conv=nn.Conv1d(16, channels, kernel, **more),
    )
    x, layouts = torch.randn(4, 8, 16), []
    executor = poptorch.inferenceModel(model)
    out = executor(x)[0]

    class Layouts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ == "convolution":
                image = args[0]
                layouts.append(image.dim() == 4 and image.is_contiguous(memory_format=torch.channels_last))
            return func(*args, **(kwargs or {}))

    with Layouts(), torch.no_grad():
        executor(x)
        expected = model.layers["conv"](x.transpose(1, 2)).transpose(1, 2)
    assert layouts == [True, False]
    assert out.shape == expected.shape and distance(out, expected) < TOLERANCE


def test_convolutions_in_bfloat16_take_pytorchs_other_shapes():
    for shape in ((16, 8), (2, 16, 8)):
        x, weight = torch.randn(shape).bfloat16(), torch.randn(4, 8, 3).bfloat16()
        assert torch.equal(
            numerics_bfloat16.conv1d(x, weight, None, 2, 1, 1, 2), F.conv1d(x, weight, None, 2, 1, 1, 2)
        )


def test_each_update_multiplies_by_the_weights_of_the_one_before(bfloat16):
    """Against a plain loop that rounds the operands of each product and its result.

    A weight that differs in its last bit may round to the next bfloat16.
    """
    bfloat16()
    linear, x = nn.Linear(16, 16), torch.randn(12, 16)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    model = Model(lambda m, x: m["lin"](x), lin=linear)
    executor = poptorch.trainingModel(
        model, options(accumulation=3), poptorch.optim.SGD(model.parameters(), lr=0.5)
    )
    for _ in range(3):
        executor(x)
        gradient = torch.zeros(16, 16), torch.zeros(16)
        for part in x.split(4):
            w, b = (p.bfloat16().float().requires_grad_() for p in (weight, bias))
            out = F.linear(part.bfloat16(), w.bfloat16(), b.bfloat16()).float()
            for total, new in zip(gradient, torch.autograd.grad((out**2).mean(), (w, b))):
                total += new / 3
        weight, bias = weight - 0.5 * gradient[0], bias - 0.5 * gradient[1]
    torch.testing.assert_close(linear.weight.detach(), weight, rtol=0, atol=3e-4)
    torch.testing.assert_close(linear.bias.detach(), bias, rtol=0, atol=3e-4)


def test_weights_that_the_host_changes_are_rounded_again(bfloat16):
    bfloat16()
    linear, x = nn.Linear(16, 16, bias=False), torch.randn(4, 16)
    executor = poptorch.inferenceModel(linear)
    executor(x)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(16))
    executor.copyWeightsToDevice()
    assert torch.equal(executor(x), x.bfloat16().float())


def test_replicas_with_weights_of_their_own_round_their_own(bfloat16):
    bfloat16()

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.stack([torch.eye(16), 2 * torch.eye(16)]))

        def forward(self, x):
            return x @ self.weight

    model, x = Grouped(), torch.randn(4, 16)
    executor = poptorch.inferenceModel(model, options(replicas=2))
    model.weight.replicaGrouping(
        poptorch.CommGroupType.NoGrouping, 0, poptorch.VariableRetrievalMode.OnePerGroup
    )
    exact = x.bfloat16().float()
    for _ in range(2):
        assert torch.equal(executor(x), torch.cat([exact[:2], 2 * exact[2:]]))


def test_a_lowest_number_as_a_mask_stays_finite(bfloat16):
    """float32's lowest number is beyond bfloat16's: a row whose keys are all masked would be NaN."""
    bfloat16()
    executor = poptorch.inferenceModel(MODELS["masks"]())
    assert executor(torch.randn(4, 8, 16))[0].isfinite().all()


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", "amx_bf16"),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\nbugs\t: x\n", "avx512_bf16"),
        ("Features\t: fp asimd bf16\n", "bf16"),
        ("flags\t\t: fpu avx512f avx512_vnni\nmodel name\t: amx_bf16\n", None),
        ("", None),
    ],
)
def test_instructions_are_read_from_the_cpus_flags(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(flags)
    assert host.bfloat16_instructions(tmp_path / "cpuinfo") == expected
    assert host.bfloat16_instructions(tmp_path / "missing") is None


def test_the_announcement_names_the_instructions_or_the_cost(bfloat16, monkeypatch):
    bfloat16()
    monkeypatch.setattr(host, "bfloat16_instructions", lambda: "amx_bf16")
    assert environment.announcement().endswith(", with products in bfloat16 (amx_bf16)")
    monkeypatch.setattr(host, "bfloat16_instructions", lambda: None)
    assert "neither AMX nor AVX512-BF16, without which they take 1.3 times" in environment.announcement()
    bfloat16(False)
    assert environment.announcement().endswith("(16 IPUs)")


def test_fastest_is_bfloat16_where_the_cpu_has_instructions_for_it(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "fastest")
    monkeypatch.setattr(host, "bfloat16_instructions", lambda: "amx_bf16")
    assert environment.precision() == ipu.fastest_precision() == "bfloat16"
    monkeypatch.setattr(host, "bfloat16_instructions", lambda: None)
    assert environment.precision() == ipu.fastest_precision() == "float32"
