"""float16 in the default precision: PyTorch's results, computed in float32 where its kernels are slow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ipu_simulator.numerics import Float16InFloat32
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

HALF = torch.float16
SLOW = ("convolution", "mm", "bmm", "attention", "_trilinear", "native_batch_norm")
# Name: (function, shapes of its operands).
OPERATIONS = {
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, stride=2, groups=2), ((2, 4, 9), (6, 2, 3), (6,))),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, dilation=2), ((2, 4, 9, 8), (6, 4, 3, 3), (6,))),
    "conv3d": (lambda x, w: F.conv3d(x, w, padding=1), ((1, 2, 4, 5, 4), (3, 2, 3, 3, 3))),
    "depthwise": (lambda x, w: F.conv1d(x, w, groups=4), ((2, 4, 9), (4, 1, 3))),
    "conv_transpose1d": (lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2), ((2, 4, 5), (4, 3, 3), (3,))),
    "conv_transpose2d": (F.conv_transpose2d, ((2, 4, 5, 5), (4, 3, 3, 3), (3,))),
    "conv_transpose3d": (F.conv_transpose3d, ((1, 2, 3, 3, 3), (2, 2, 2, 2, 2))),
    "linear": (F.linear, ((5, 40), (7, 40), (7,))),
    "product without bias": (torch.matmul, ((3, 5, 40), (40, 7))),
    "batched product": (torch.matmul, ((3, 5, 40), (3, 40, 7))),
    "baddbmm": (torch.baddbmm, ((3, 5, 7), (3, 5, 40), (3, 40, 7))),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), ((3, 5, 40), (3, 7, 40))),
    "bilinear": (F.bilinear, ((5, 6), (5, 4), (3, 6, 4))),
    "attention": (F.scaled_dot_product_attention, ((1, 2, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8))),
    "batch norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), ((4, 3, 5), (3,), (3,))),
}


def numbers(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).half() for shape in shapes]


def distance_ulp(found, expected):
    """In float16 units in the last place, at least those of 1/16, because sums cancel."""
    spacing = torch.exp2(expected.abs().clamp(min=2**-4).log2().floor() - 10)
    return float(((found.double() - expected).abs() / spacing).max().detach())


class Kernels(TorchDispatchMode):
    """Counts the slow operations that reach PyTorch with float16 operands, outside the tested mode."""

    def __init__(self):
        super().__init__()
        self.slow = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        operands = [leaf for leaf in tree_flatten((args, kwargs or {}))[0] if isinstance(leaf, torch.Tensor)]
        if any(slow in name for slow in SLOW) and any(operand.dtype is HALF for operand in operands):
            self.slow.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_and_gradients_are_rounded_once(name):
    """Against the same operation in float64."""
    if name == "attention" and torch.__version__ < "2.1":
        pytest.skip("PyTorch 2.0 has no float16 softmax on a CPU")
    function, shapes = OPERATIONS[name]
    narrow = [tensor.requires_grad_() for tensor in numbers(*shapes)]
    exact = [tensor.detach().double().requires_grad_() for tensor in narrow]
    kernels, mode = Kernels(), Float16InFloat32()
    with kernels, mode:
        result = function(*narrow)
        gradient = numbers(result.shape)[0]
        result.backward(gradient)
    expected = function(*exact)
    expected.backward(gradient.double())
    assert mode.saw_float16
    assert kernels.slow == []
    assert result.dtype is HALF
    assert distance_ulp(result, expected) <= 1
    # Gradients of a norm and of attention start from statistics and results that are rounded themselves.
    allowed = 8 if name in ("batch norm", "attention") else 1
    for found, reference in zip(narrow, exact):
        assert found.grad.dtype is HALF
        assert distance_ulp(found.grad, reference.grad) <= allowed


def test_in_place_and_out():
    a, b, c = numbers((4, 4), (4, 4), (4, 4))
    expected = (c.float() + a.float() @ b.float()).half()
    into = torch.zeros(4, 4, dtype=HALF)
    with Float16InFloat32():
        assert c.clone().addmm_(a, b).equal(expected)
        assert torch.addmm(c, a, b, out=into) is into
    assert into.equal(expected)


def test_other_types_and_overflow_are_pytorchs():
    a, b = (tensor.float() for tensor in numbers((4, 4), (4, 4)))
    large = torch.full((2, 2), 60000.0).half()
    mode = Float16InFloat32()
    with mode:
        assert torch.equal(a @ b, torch.mm(a, b))
        assert not mode.saw_float16
        assert (large @ large).isposinf().all()
        with pytest.raises(RuntimeError):
            torch.mm(a, b.half())
