"""float16 operations with an IPU's arithmetic, forward and backward: a dispatch mode.

It works below autograd: operands are float16, every operation computes in float32 and rounds its result once,
to nearest. Differences from PyTorch's float16:

- products and convolutions accumulate in the chosen partials type, and a bias is a second operation;
- on overflow the result is float16's largest number, not infinity. Infinities that are already in the
  operands (masks) or come from a division by zero are kept;
- with floating-point exceptions on, an overflow, an invalid operation or a division by zero raises;
- GELU is its tanh form, whichever the program asks for, in float32 too (`facts.json`, "gelu").

`fast` gives up what is slow to emulate: partials are float32, a bias isn't a second rounding, and operations
that PyTorch computes fast in float16 are its own, which are equal to one unit in the last place.

Other operations on float32 are unchanged. Not covered: stochastic rounding of activations and gradients,
which are rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from . import float16_products
from .float16_products import Operator, check, operator_of
from .nested import OperationMode, leaves, mapped, mapped_tensors
from .rounding import FLOAT16, FloatingPointException, fact, overflows, round_to_nearest_, to_nearest

aten = torch.ops.aten

# The exponent bits of a float16: all ones in infinities and NaN only.
_EXPONENT = ((1 << FLOAT16.exponent_bits) - 1) << FLOAT16.mantissa_bits
_MAGNITUDE = (1 << (FLOAT16.bits - 1)) - 1
_GELU = fact("gelu")
_HALF = torch.float16


@dataclass(frozen=True)
class Arithmetic:
    """The user's choices: partials types, whether floating-point exceptions raise, and whether to be fast."""

    half_matmul_partials: bool = False
    half_convolution_partials: bool = False
    exceptions: bool = False
    fast: bool = False


class Float16Arithmetic(OperationMode):
    """Inside, operations on float16 tensors give an IPU's results. Raises FloatingPointException."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._arithmetic = arithmetic
        # If exceptions raise, an overflow must be visible where it happens.
        round_partial = _round_to_infinity_ if arithmetic.exceptions else round_to_nearest_
        half_matmuls = arithmetic.half_matmul_partials and not arithmetic.fast
        half_convolutions = arithmetic.half_convolution_partials and not arithmetic.fast
        self._matmul_partials = round_partial if half_matmuls else None
        self._convolution_partials = round_partial if half_convolutions else None
        self._products: Dict[Any, Callable[..., Any]] = {
            aten.mm.default: self._mm,
            aten.bmm.default: self._mm,
            aten.mv.default: self._mv,
            aten.dot.default: self._dot,
            aten.convolution_backward.default: self._convolution_backward,
        }
        if not arithmetic.fast:
            self._products[aten.addmm.default] = self._products[aten.baddbmm.default] = self._addmm
            self._products[aten.addmv.default] = self._addmv
            self._products[aten.convolution.default] = self._convolution

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = operator_of(func)
        if not operator.computes:
            return func(*args, **kwargs)
        if operator.name in ("gelu", "gelu_", "gelu_backward"):
            kwargs = {**kwargs, "approximate": _GELU}
        if operator.name in ("_to_copy", "copy_"):
            return self._cast(func, operator, args, kwargs)
        operands = [leaf for leaf in leaves((args, kwargs)) if is_floating(leaf)]
        if any(operand.layout is not torch.strided for operand in operands):
            return self._in_float32(func, operator, args, kwargs)  # gradients of embeddings
        if not gives_float16(operator, operands) and not _written(operator, args, kwargs):
            result = func(*args, **kwargs)
            self._stop_at_exceptions(operator, operands, result)
            return result
        # If exceptions raise, results are compared with their operands, also in place.
        given = operands
        if self._arithmetic.exceptions and operator.writes:
            given = [operand.clone() for operand in operands]
        if func in self._products:
            result = self._products[func](*args, **kwargs)
        elif operator.row.adds_in_float16 or (self._arithmetic.fast and not operator.row.slow_in_float16):
            result = self._by_pytorch(func, operator, args, kwargs)
        else:
            result = self._in_float32(func, operator, args, kwargs)
        self._stop_at_exceptions(operator, given, result)
        return result

    # ---- operations computed by PyTorch

    def _cast(self, func: Any, operator: Operator, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """_to_copy(tensor, dtype=...), or copy_(to, tensor): only float32 to float16 rounds."""
        source = args[0] if operator.name == "_to_copy" else args[1]
        dtype = kwargs.get("dtype") if operator.name == "_to_copy" else args[0].dtype
        result = func(*args, **kwargs)
        if source.dtype not in (torch.float32, torch.float64) or dtype is not _HALF or _is_finite(result):
            return result
        self._stop_at_overflow(operator, source)
        limited = torch.where(source.isinf(), source, source.clamp(-FLOAT16.largest, FLOAT16.largest))
        return func(*(limited if arg is source else arg for arg in args), **kwargs)

    def _in_float32(
        self, func: Any, operator: Operator, args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Any:
        return computed_in_float32(func, operator, args, kwargs, lambda wide: self._rounded(operator, wide))

    def _by_pytorch(
        self, func: Any, operator: Operator, args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Any:
        """PyTorch's operation in float16; on overflow, float32's, rounded."""
        before = args
        if operator.writes:
            before = mapped_tensors(torch.Tensor.clone, args)
        result = func(*args, **kwargs)
        narrow = [leaf for leaf in leaves(result) if isinstance(leaf, torch.Tensor) and leaf.dtype is _HALF]
        if all(_is_finite(tensor) for tensor in narrow):
            return result
        exact = leaves(_on_copies(func, before, kwargs)[0])
        for tensor, wide in zip(leaves(result), exact):
            if isinstance(tensor, torch.Tensor) and tensor.dtype is _HALF:
                tensor.copy_(self._rounded(operator, wide))
        return result

    def _rounded(self, operator: Operator, wide: torch.Tensor) -> torch.Tensor:
        """float32 -> float16, infinities unchanged; other types unchanged."""
        if wide.dtype is not torch.float32:
            return wide
        rounded = wide.half()
        if wide.layout is not torch.strided:
            return rounded
        if _is_finite(rounded):
            return rounded
        self._stop_at_overflow(operator, wide)
        return torch.where(wide.isinf(), rounded, to_nearest(wide))

    # ---- products

    def _mm(self, a: torch.Tensor, b: torch.Tensor, **_: Any) -> torch.Tensor:
        return self._narrow(float16_products.matmul(a.float(), b.float(), self._matmul_partials), "a product")

    def _narrow(self, wide: torch.Tensor, where: str) -> torch.Tensor:
        rounded = wide.half()
        if _is_finite(rounded):
            return rounded
        if self._arithmetic.exceptions and overflows(wide):
            raise FloatingPointException(f"floating point overflow in {where}")
        return to_nearest(wide)

    def _mv(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self._mm(a, b.unsqueeze(1)).squeeze(1)

    def _dot(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self._mm(a.unsqueeze(0), b.unsqueeze(1)).view(())

    def _addmm(
        self, added: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float = 1, alpha: float = 1
    ) -> torch.Tensor:
        product = self._mm(a, b).float()
        return self._narrow(product * alpha + added.float() * beta if beta else product * alpha, "a sum")

    def _addmv(
        self, added: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float = 1, alpha: float = 1
    ) -> torch.Tensor:
        column = added.unsqueeze(1) if added.dim() else added
        return self._addmm(column, a, b.unsqueeze(1), beta, alpha).squeeze(1)

    def _convolution(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        stride: List[int],
        padding: List[int],
        dilation: List[int],
        transposed: bool,
        output_padding: List[int],
        groups: int,
    ) -> torch.Tensor:
        wide = x.float(), weight.float()
        partials = self._convolution_partials
        if partials is not None and float16_products.can_lower(weight, transposed):
            window = float16_products.Window(stride, padding, dilation, groups)
            out = float16_products.convolution(*wide, window, partials)
        else:
            out = aten.convolution(*wide, None, stride, padding, dilation, transposed, output_padding, groups)
        out = self._narrow(out, "a convolution")
        if bias is not None:
            out = self._narrow(out.float() + bias.float().view(-1, *[1] * (out.dim() - 2)), "a sum")
        return out

    def _convolution_backward(
        self,
        gradient: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias_sizes: Optional[List[int]],
        stride: List[int],
        padding: List[int],
        dilation: List[int],
        transposed: bool,
        output_padding: List[int],
        groups: int,
        wanted: Sequence[bool],
    ) -> Tuple[Optional[torch.Tensor], ...]:
        wide = gradient.float(), x.float(), weight.float()
        found: List[Optional[torch.Tensor]]
        partials = self._convolution_partials
        if partials is not None and float16_products.can_lower(weight, transposed):
            window = float16_products.Window(stride, padding, dilation, groups)
            found = list(float16_products.convolution_gradients(*wide, window, wanted, partials))
        else:
            found = list(
                aten.convolution_backward(
                    *wide,
                    None,
                    stride,
                    padding,
                    dilation,
                    transposed,
                    output_padding,
                    groups,
                    [wanted[0], wanted[1], False],
                )[:2]
            )
        found.append(wide[0].sum(dim=[0, *range(2, gradient.dim())]) if wanted[2] else None)
        return tuple(
            self._narrow(tensor, "a convolution's gradient") if want and tensor is not None else None
            for tensor, want in zip(found, wanted)
        )

    # ---- exceptions

    def _stop_at_overflow(self, operator: Operator, wide: torch.Tensor) -> None:
        if self._arithmetic.exceptions and overflows(torch.where(wide.isinf(), 0.0, wide)):
            raise FloatingPointException(f"floating point overflow in {operator.name}")

    def _stop_at_exceptions(self, operator: Operator, operands: Sequence[torch.Tensor], result: Any) -> None:
        if self._arithmetic.exceptions:
            check(operator, operands, result)


def computed_in_float32(
    func: Any,
    operator: Operator,
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> Any:
    """The operation on float32 copies of all float16 tensors, its float32 results `rounded` once."""
    exact, copies = _on_copies(func, args, kwargs)
    for tensor in _written(operator, args, kwargs):
        tensor.copy_(rounded(copies[id(tensor)]))
    if operator.returns_written:
        return args[operator.writes[0]] if operator.writes else kwargs[operator.writes_named[0]]
    if kwargs.get("dtype") is torch.float32:
        return exact
    if not isinstance(exact, tuple):
        return mapped_tensors(rounded, exact)
    kept = operator.row.float32_outputs
    return tuple(
        rounded(wide) if isinstance(wide, torch.Tensor) and i not in kept else wide
        for i, wide in enumerate(exact)
    )


def gives_float16(operator: Operator, operands: Sequence[torch.Tensor]) -> bool:
    """Whether an operation on these floating-point operands gives float16.

    By PyTorch's type promotion: a float32 operand gives float32, unless it is 0-d and another isn't."""
    narrow = [operand for operand in operands if operand.dtype is torch.float16]
    wide = [operand for operand in operands if operand.dtype is torch.float32]
    if not narrow or not wide or operator.row.takes_float32:
        return bool(narrow)
    return all(operand.dim() == 0 for operand in wide) and any(operand.dim() > 0 for operand in narrow)


def _round_to_infinity_(values: torch.Tensor) -> None:
    values.copy_(values.half())


def is_floating(leaf: Any) -> bool:
    """Whether it is a tensor of float16 or float32."""
    return isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float16, torch.float32)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all elements of a float16 tensor are: `isfinite` would take longer."""
    return not tensor.numel() or int((tensor.view(torch.int16) & _MAGNITUDE).amax()) < _EXPONENT


def _written(operator: Operator, args: Sequence[Any], kwargs: Dict[str, Any]) -> List[torch.Tensor]:
    """The float16 tensors that an operation writes to."""
    places = [args[index] for index in operator.writes if index < len(args)]
    places += [kwargs[name] for name in operator.writes_named if name in kwargs]
    return [leaf for leaf in leaves(places) if isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float16]


def _on_copies(
    func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]
) -> Tuple[Any, Dict[int, torch.Tensor]]:
    """Runs the operation on float32 copies of all float16 tensors -> its result, and the copies by id."""
    copies: Dict[int, torch.Tensor] = {}

    def widened(leaf: Any) -> Any:
        if leaf is torch.float16:
            return torch.float32
        if not isinstance(leaf, torch.Tensor) or leaf.dtype is not torch.float16:
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.float()
        return copies[id(leaf)]

    wide_args, wide_kwargs = mapped(widened, (args, kwargs))
    return func(*wide_args, **wide_kwargs), copies
