"""Matrix products and convolutions of float16 operands with float32 or float16 partials; floating-point
exceptions.

An IPU adds a block of products (`facts.json`, "amp_block_inputs") with float32's accuracy and writes the sum
in the partials type, so float16 partials are rounded after each block. Here blocks are added in order; an IPU
also splits long sums over tiles, so its chains of roundings are shorter. Convolutions are lowered to
products, kernel positions outside, channels inside. Operators are classified by PyTorch's schemas, and
`check` detects floating-point exceptions.

Not covered: float16 partials of transposed and three-dimensional convolutions, which stay float32; and
float16 partials between the kernel positions of an input's gradient.

Letters: G groups, B batch, L positions of the output, T kernel positions, C and N input and output channels
of a group, K = T * C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F

from ..op_table import OpRow, row_of
from .nested import OperationMode, leaves, mapped_tensors
from .rounding import FloatingPointException, InvalidOperation, fact

# Rounds partial results in place: float32 tensors with float16 values.
PartialRounding = Callable[[torch.Tensor], Any]

BLOCK = int(fact("amp_block_inputs"))


def matmul(a: torch.Tensor, b: torch.Tensor, round_partial: Optional[PartialRounding]) -> torch.Tensor:
    """float32 [M, K] x [K, N], or both with a leading batch -> float32, not yet rounded to the result's type.

    `round_partial` is None for partial results in float32.
    """
    inputs = a.shape[-1]
    if round_partial is None:
        return torch.matmul(a, b)
    partial = torch.matmul(a[..., :BLOCK], b[..., :BLOCK, :])
    round_partial(partial)
    for start in range(BLOCK, inputs, BLOCK):
        block_a, block_b = a[..., start : start + BLOCK], b[..., start : start + BLOCK, :]
        if partial.dim() == 2:
            partial.addmm_(block_a, block_b)
        else:
            partial.baddbmm_(block_a, block_b)
        round_partial(partial)
    return partial


class Window(NamedTuple):
    """Parameters of a convolution: each a list with one entry per dimension."""

    stride: List[int]
    padding: List[int]
    dilation: List[int]
    groups: int


def can_lower(weight: torch.Tensor, transposed: bool) -> bool:
    """Whether `convolution` and `convolution_gradients` support it."""
    return not transposed and weight.dim() in (3, 4)


def convolution(
    x: torch.Tensor, weight: torch.Tensor, window: Window, round_partial: PartialRounding
) -> torch.Tensor:
    """float32 [B, channels, (H,) W], [N * G, C, (kernel,) kernel] -> float32."""
    if x.dim() == 3:
        wide = convolution(x.unsqueeze(2), weight.unsqueeze(2), _with_height(window), round_partial)
        return wide.squeeze(2)
    out = matmul(_columns(x, weight, window), _matrices(weight, window), round_partial)
    sizes = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            x.shape[2:], weight.shape[2:], window.stride, window.padding, window.dilation
        )
    ]
    # [G, B * L, N] -> [B, G * N, H, W]
    grouped: torch.Tensor = out.unflatten(1, (x.shape[0], -1)).permute(1, 0, 3, 2)
    return grouped.reshape(x.shape[0], weight.shape[0], *sizes)


def convolution_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    window: Window,
    wanted: Sequence[bool],
    round_partial: PartialRounding,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `x` and `weight`, float32; empty tensors for those not `wanted`."""
    if x.dim() == 3:
        gradient_x, gradient_weight = convolution_gradients(
            gradient.unsqueeze(2),
            x.unsqueeze(2),
            weight.unsqueeze(2),
            _with_height(window),
            wanted,
            round_partial,
        )
        return (
            gradient_x.squeeze(2) if wanted[0] else gradient_x,
            gradient_weight.squeeze(2) if wanted[1] else gradient_weight,
        )
    # [B, G * N, H, W] -> [G, B * L, N]
    rows = gradient.flatten(2).unflatten(1, (window.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    gradient_x, gradient_weight = x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        columns = matmul(rows, _matrices(weight, window).transpose(1, 2), round_partial)
        gradient_x = _from_columns(columns, x, weight, window)
    if wanted[1]:
        matrices = matmul(_columns(x, weight, window).transpose(1, 2), rows, round_partial)
        # [G, T * C, N] -> [G * N, C, kernel, kernel]
        taps = matrices.unflatten(1, (-1, weight.shape[1])).permute(0, 3, 2, 1)
        gradient_weight = taps.reshape(weight.shape)
    return gradient_x, gradient_weight


def _with_height(window: Window) -> Window:
    return Window([1, *window.stride], [0, *window.padding], [1, *window.dilation], window.groups)


def _columns(x: torch.Tensor, weight: torch.Tensor, window: Window) -> torch.Tensor:
    """[B, G * C, H, W] -> [G, B * L, T * C]: the receptive field of each output position (im2col)."""
    unfolded = F.unfold(x, _pair(weight.shape[2:]), **_walk(window))
    split: torch.Tensor = unfolded.unflatten(1, (window.groups, weight.shape[1], -1))  # [B, G, C, T, L]
    return split.permute(1, 0, 4, 3, 2).flatten(3, 4).flatten(1, 2)


def _from_columns(
    columns: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, window: Window
) -> torch.Tensor:
    """The sum over all receptive fields that contain an input: the transpose of _columns."""
    split = columns.unflatten(2, (-1, weight.shape[1])).unflatten(1, (x.shape[0], -1))  # [G, B, L, T, C]
    unfolded = split.permute(1, 0, 4, 3, 2).flatten(1, 3)
    return F.fold(unfolded, _pair(x.shape[2:]), _pair(weight.shape[2:]), **_walk(window))


def _matrices(weight: torch.Tensor, window: Window) -> torch.Tensor:
    """[G * N, C, kernel, kernel] -> [G, T * C, N]."""
    split: torch.Tensor = weight.flatten(2).unflatten(0, (window.groups, -1))  # [G, N, C, T]
    return split.permute(0, 3, 2, 1).flatten(1, 2)


def _walk(window: Window) -> Dict[str, Tuple[int, int]]:
    return {
        "dilation": _pair(window.dilation),
        "padding": _pair(window.padding),
        "stride": _pair(window.stride),
    }


def _pair(sizes: Sequence[int]) -> Tuple[int, int]:
    height, width = sizes
    return height, width


@dataclass(frozen=True)
class Operator:
    """A dispatched operator: its name and its row of the table of operations, whether it is arithmetic, the
    arguments that it writes to (by position or name), and whether it returns one of those.
    """

    name: str
    row: OpRow
    computes: bool
    writes: Tuple[int, ...]
    writes_named: Tuple[str, ...]
    returns_written: bool


@cache
def operator_of(func: Any) -> Operator:
    """The facts of a dispatched operator."""
    name = func.overloadpacket.__name__
    schema = func._schema
    writes = [
        (index, argument)
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    is_view = torch.Tag.inplace_view in func.tags or (
        not writes and any(argument.alias_info is not None for argument in schema.arguments)
    )
    by_position = tuple(index for index, argument in writes if not argument.kwarg_only)
    row = row_of(name.removesuffix("_"))
    draws = row.drawn_natively and name.endswith("_")
    return Operator(
        name=name,
        row=row,
        computes=not (is_view or row.alias or row.copies or draws),
        writes=by_position or row.also_writes,
        writes_named=tuple(argument.name for _, argument in writes if argument.kwarg_only),
        returns_written=any(returned.alias_info is not None for returned in schema.returns),
    )


def check(operator: Operator, operands: Any, result: Any) -> None:
    """Raises FloatingPointException if an operation produced an infinity or NaN that wasn't in its operands.

    :param operands, result: tensors and numbers, nested in any way.
    """
    made = [leaf for leaf in leaves(result) if _is_floating(leaf)]
    if operator.row.signals_nan:
        if any(_has_nan(leaf) for leaf in leaves(operands)):
            raise InvalidOperation(f"floating point exception, invalid operation, in {operator.name}")
        return
    if all(_is_finite(tensor) for tensor in made):
        return
    given: List[Any] = leaves(operands)
    if any(_has_nan(tensor) for tensor in made):
        if not any(_has_nan(leaf) for leaf in given):
            raise InvalidOperation(f"floating point exception, invalid operation, in {operator.name}")
    elif all(_is_finite(leaf) for leaf in given):
        raise FloatingPointException(
            f"floating point exception, division by zero or overflow, in {operator.name}"
        )


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _is_finite(leaf: Any) -> bool:
    if _is_floating(leaf):
        return bool(leaf.isfinite().all())
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _has_nan(leaf: Any) -> bool:
    if _is_floating(leaf):
        return bool(leaf.isnan().any())
    return isinstance(leaf, float) and math.isnan(leaf)


class FloatingPointExceptions(OperationMode):
    """Inside, forward and backward, an operation that produces an infinity or NaN from finite operands raises
    FloatingPointException.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = operator_of(func)
        if not operator.computes:
            return func(*args, **kwargs)
        given = (args, kwargs)
        if operator.writes or operator.writes_named:
            given = mapped_tensors(torch.Tensor.clone, given)
        result = func(*args, **kwargs)
        try:
            check(operator, given, result)
        except FloatingPointException as exception:
            self.found(exception)
        return result

    def found(self, exception: FloatingPointException) -> None:
        """Called for each exception, by the operation that made it."""
        raise exception
