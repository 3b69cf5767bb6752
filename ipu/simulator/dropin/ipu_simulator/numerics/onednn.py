"""Float32 products by oneDNN in the place of PyTorch's BLAS, MKL in its wheels for x86.

On AMD's CPUs oneDNN multiplies about twice as fast. It adds in another order, so the last bits differ. The
operation is the one that torch.compile uses for a linear layer, from PyTorch 2.1 on.

Letters in shapes: N samples, I and O columns of a product's operand and result.
"""

from __future__ import annotations

import functools
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F

# Multiplications from which a product gains more than the call of a Python function costs, about 20 us.
_LEAST = 1 << 22


@functools.cache
def is_available() -> bool:
    """Whether this PyTorch has oneDNN's product, which it tries: versions before 2.1 know only fused ones."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        _product(torch.ones(1, 1), torch.ones(1, 1), None)
    except (AttributeError, RuntimeError):
        return False
    return True


def _product(input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


def linear(input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None) -> torch.Tensor:
    """torch.nn.functional.linear; by oneDNN if the operands are float32 and large enough."""
    if not _fits(input, weight, bias) or (bias is not None and bias.shape != weight.shape[:1]):
        return F.linear(input, weight, bias)
    rows: torch.Tensor = _Product.apply(input.reshape(-1, input.shape[-1]), weight, bias)
    product: torch.Tensor = rows.unflatten(0, input.shape[:-1])
    return product


def matmul(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """torch.matmul; by oneDNN if the second operand is a matrix, as `linear`."""
    if other.dim() == 2 and _fits(input, other.t(), None):
        return linear(input, other.t())
    return torch.matmul(input, other)


def mm(input: torch.Tensor, mat2: torch.Tensor) -> torch.Tensor:
    """torch.mm; by oneDNN as `matmul`."""
    return matmul(input, mat2) if input.dim() == 2 else torch.mm(input, mat2)


def addmm(input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, **factors: Any) -> torch.Tensor:
    """torch.addmm; by oneDNN if `input` is a bias [O] and no factor is given, as `linear`."""
    if input.dim() == 1 and not factors and mat1.dim() == 2 and mat2.dim() == 2:
        return linear(mat1, mat2.t(), input)
    return torch.addmm(input, mat1, mat2, **factors)


def _fits(input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> bool:
    operands = [tensor for tensor in (input, weight, bias) if tensor is not None]
    return (
        input.dim() >= 2
        and weight.dim() == 2
        and input.shape[-1] == weight.shape[1]
        and all(tensor.dtype is torch.float32 and tensor.layout is torch.strided for tensor in operands)
        and not any(map(torch._C._functorch.is_gradtrackingtensor, operands))
        # Batched micro batches are larger than they seem here.
        and (_pays(input, weight) or any(map(torch._C._functorch.is_batchedtensor, operands)))
    )


def _pays(input: torch.Tensor, weight: torch.Tensor) -> bool:
    return input.numel() * weight.shape[0] >= _LEAST


class _Product(torch.autograd.Function):
    """input [N, I], weight [O, I], bias [O] or None -> [N, O]."""

    @staticmethod
    def forward(input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
        if not _pays(input, weight):
            return F.linear(input, weight, bias)
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()
        return _product(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        (of_output,) = gradients
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            _Product.apply(of_output, weight.t(), None) if of_input else None,
            _Product.apply(of_output.t(), input.t(), None) if of_weight else None,
            of_output.sum(0) if of_bias else None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: Tuple[Optional[int], ...], input: torch.Tensor, weight: torch.Tensor, bias: Any
    ) -> Tuple[torch.Tensor, int]:
        """Batched inputs with one weight are one product."""
        dim, of_weight, of_bias = in_dims
        if dim is None or of_weight is not None or of_bias is not None:
            operands = [input, weight, bias]
            batched = [
                tensor if tensor is None or dim is None else tensor.movedim(dim, 0)
                for tensor, dim in zip(operands, in_dims)
            ]
            product = torch.matmul(batched[0], batched[1].transpose(-2, -1))
            if batched[2] is not None:
                product = product + (batched[2] if of_bias is None else batched[2].unsqueeze(1))
            return product, 0
        rows = input.movedim(dim, 0)
        found: torch.Tensor = _Product.apply(rows.flatten(0, 1), weight, bias)
        return found.unflatten(0, rows.shape[:2]), 0
