"""float16 operations as an IPU computes them, in place of PyTorch's, forward and backward.

Stands around a model's run, below autograd: operands are float16, every operation computes in float32 and
rounds its result once, to nearest. What differs from PyTorch's own float16:

- products and convolutions accumulate in the partials type asked for, and a bias is a second operation;
- a result that is too large becomes float16's largest number, not infinity. Infinities that were there
  before (masks) or come from a division by zero stay;
- with floating-point exceptions on, an overflow, an invalid operation or a division by zero stops the run.

Operations on float32 are left alone. Not covered: stochastic rounding of activations and gradients, which
are rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from . import products
from .formats import FLOAT16
from .rounding import FloatingPointException, overflows, round_to_nearest_, to_nearest

aten = torch.ops.aten

# Bits of a float16 that are all ones in infinities and NaN, and in no number.
_EXPONENT = ((1 << FLOAT16.exponent_bits) - 1) << FLOAT16.mantissa_bits
_MAGNITUDE = (1 << (FLOAT16.bits - 1)) - 1

# These write what they are given or what chance gives; an infinity from them is meant.
_NOT_ARITHMETIC = frozenset(
    """_unsafe_view bernoulli bernoulli_ cat clone constant_pad_nd detach embedding empty empty_like
    empty_strided fill fill_ flip full full_like gather index index_select lift_fresh masked_fill
    masked_fill_ new_empty new_empty_strided new_full new_zeros normal_ ones_like random_ repeat roll
    scalar_tensor select_backward slice_backward stack uniform_ where zero_ zeros_like""".split()
)
# PyTorch rounds these more than once, or adds in float16.
_IN_FLOAT32 = frozenset(
    """addcdiv addcdiv_ addcmul addcmul_ cumprod cumsum linalg_vector_norm logcumsumexp logsumexp mean prod
    std std_mean var var_mean""".split()
)


@dataclass(frozen=True)
class Arithmetic:
    """What a program may choose: partials types, and whether an exception stops it."""

    half_matmul_partials: bool = False
    half_convolution_partials: bool = False
    exceptions: bool = False


@dataclass(frozen=True)
class _Operation:
    """What is known of an operator: its name, whether results need a look, which arguments it writes to."""

    name: str
    computes: bool
    writes: Tuple[int, ...]
    writes_named: Tuple[str, ...]


class Float16Arithmetic(TorchDispatchMode):
    """Inside, operations on float16 tensors give what an IPU gives. Raises FloatingPointException."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._arithmetic = arithmetic
        # An overflow has to be seen where it stops the program.
        round_partial = _round_to_infinity_ if arithmetic.exceptions else round_to_nearest_
        self._matmul_partials = round_partial if arithmetic.half_matmul_partials else None
        self._convolution_partials = round_partial if arithmetic.half_convolution_partials else None
        self._products: Dict[Any, Callable[..., Any]] = {
            aten.mm.default: self._mm,
            aten.bmm.default: self._mm,
            aten.mv.default: self._mv,
            aten.dot.default: self._dot,
            aten.addmm.default: self._addmm,
            aten.baddbmm.default: self._addmm,
            aten.addmv.default: self._addmv,
            aten.convolution.default: self._convolution,
            aten.convolution_backward.default: self._convolution_backward,
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = _operation(func)
        if not operation.computes:
            return func(*args, **kwargs)
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if _is_floating(leaf)]
        narrow = any(operand.dtype is torch.float16 for operand in operands)
        mixed = narrow and any(operand.dtype is torch.float32 for operand in operands)
        if narrow and not mixed and func in self._products:
            result = self._products[func](*args, **kwargs)
            self._stop_at_exceptions(operation, operands, result)
            return result
        if narrow and not mixed and operation.name in _IN_FLOAT32:
            return self._checked_float32(func, operation, args, kwargs, operands)
        if narrow or kwargs.get("dtype") is torch.float16 or self._arithmetic.exceptions:
            return self._checked(func, operation, args, kwargs, operands)
        return func(*args, **kwargs)

    # ---- operations that PyTorch computes

    def _checked(
        self,
        func: Any,
        operation: _Operation,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
        operands: List[torch.Tensor],
    ) -> Any:
        """PyTorch's result, with every overflow repaired; float32's where PyTorch has no float16."""
        if operation.name == "_to_copy" and kwargs.get("dtype") is torch.float16:
            if args[0].dtype is torch.float32:
                self._stop_at_overflow(operation, args[0])
                return func(_saturated(args[0]), *args[1:], **kwargs)
            return func(*args, **kwargs)
        before = {id(tensor): tensor.clone() for tensor in _written(operation, args, kwargs)}
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if "not implemented for 'Half'" not in str(error):
                raise
            return self._checked_float32(func, operation, args, kwargs, operands)
        results = [leaf for leaf in tree_leaves(result) if _is_floating(leaf)]
        if all(_is_finite(tensor) for tensor in results):
            return result
        if any(tensor.dtype is torch.float16 for tensor in results):
            exact, _ = _in_float32(func, args, kwargs, before)
            for tensor, wide in zip(results, (leaf for leaf in tree_leaves(exact) if _is_floating(leaf))):
                overflowed = wide.isfinite() & ~tensor.isfinite()
                if self._arithmetic.exceptions and bool(overflowed.any()):
                    raise FloatingPointException(f"floating point overflow in {operation.name}")
                if tensor.dtype is torch.float16:
                    tensor.copy_(torch.where(overflowed, to_nearest(wide), tensor))
        self._stop_at_exceptions(operation, [before.get(id(o), o) for o in operands], result)
        return result

    def _checked_float32(
        self,
        func: Any,
        operation: _Operation,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
        operands: List[torch.Tensor],
    ) -> Any:
        """Computed in float32 and rounded once."""
        given = [operand.clone() for operand in operands] if operation.writes else operands
        exact, widened = _in_float32(func, args, kwargs, {})
        written = _written(operation, args, kwargs)
        for tensor in written:
            self._stop_at_overflow(operation, widened[id(tensor)])
            tensor.copy_(to_nearest(widened[id(tensor)]))
        self._stop_at_exceptions(operation, given, exact)
        if operation.writes:
            return args[operation.writes[0]]
        if kwargs.get("dtype") is torch.float32:
            return exact
        return tree_map_only(torch.Tensor, lambda wide: self._rounded(operation, wide), exact)

    # ---- products

    def _mm(self, a: torch.Tensor, b: torch.Tensor, **_: Any) -> torch.Tensor:
        return self._narrow(products.matmul(a.float(), b.float(), self._matmul_partials), "a product")

    def _narrow(self, wide: torch.Tensor, where: str) -> torch.Tensor:
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
        return self._addmm(added.unsqueeze(1), a, b.unsqueeze(1), beta, alpha).squeeze(1)

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
        if partials is not None and products.can_lower(weight, transposed):
            window = products.Window(stride, padding, dilation, groups)
            out = products.convolution(*wide, window, partials)
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
        if partials is not None and products.can_lower(weight, transposed):
            window = products.Window(stride, padding, dilation, groups)
            found = list(products.convolution_gradients(*wide, window, wanted, partials))
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

    def _rounded(self, operation: _Operation, wide: torch.Tensor) -> torch.Tensor:
        if wide.dtype is not torch.float32:
            return wide
        self._stop_at_overflow(operation, wide)
        return torch.where(wide.isinf(), wide.half(), to_nearest(wide))

    def _stop_at_overflow(self, operation: _Operation, wide: torch.Tensor) -> None:
        if self._arithmetic.exceptions and overflows(torch.where(wide.isinf(), 0.0, wide)):
            raise FloatingPointException(f"floating point overflow in {operation.name}")

    def _stop_at_exceptions(
        self, operation: _Operation, operands: Sequence[torch.Tensor], result: Any
    ) -> None:
        """Raises where finite operands gave an infinity or NaN."""
        if not self._arithmetic.exceptions:
            return
        made = [leaf for leaf in tree_leaves(result) if _is_floating(leaf)]
        if all(_is_finite(tensor) for tensor in made) or not all(_is_finite(o) for o in operands):
            return
        invalid = any(bool(tensor.isnan().any()) for tensor in made)
        what = "invalid operation" if invalid else "division by zero or overflow"
        raise FloatingPointException(f"floating point exception, {what}, in {operation.name}")


@cache
def _operation(func: Any) -> _Operation:
    name = func.overloadpacket.__name__
    arguments = func._schema.arguments
    writes = [
        (index, argument)
        for index, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    is_view = not writes and any(argument.alias_info is not None for argument in arguments)
    return _Operation(
        name=name,
        computes=not is_view and name not in _NOT_ARITHMETIC,
        writes=tuple(index for index, argument in writes if not argument.kwarg_only),
        writes_named=tuple(argument.name for _, argument in writes if argument.kwarg_only),
    )


def _round_to_infinity_(values: torch.Tensor) -> None:
    values.copy_(values.half())


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float16, torch.float32)


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    if tensor.dtype is torch.float16:
        return int((tensor.view(torch.int16) & _MAGNITUDE).amax()) < _EXPONENT
    return bool(tensor.isfinite().all())


def _saturated(values: torch.Tensor) -> torch.Tensor:
    """float32 with every finite number in float16's range; infinities stay."""
    return torch.where(values.isinf(), values, values.clamp(-FLOAT16.largest, FLOAT16.largest))


def _written(operation: _Operation, args: Sequence[Any], kwargs: Dict[str, Any]) -> List[torch.Tensor]:
    """The float16 tensors that an operation writes to."""
    places = [args[index] for index in operation.writes if index < len(args)]
    places += [kwargs[name] for name in operation.writes_named if name in kwargs]
    return [
        leaf for leaf in tree_leaves(places) if isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float16
    ]


def _in_float32(
    func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], before: Dict[int, torch.Tensor]
) -> Tuple[Any, Dict[int, torch.Tensor]]:
    """The operation on float32 copies of all float16 tensors -> its result, and the copies by id.

    `before` has the values of tensors that were written to since.
    """
    copies: Dict[int, torch.Tensor] = {}

    def widened(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is not torch.float16:
            return tensor
        if id(tensor) not in copies:
            copies[id(tensor)] = before.get(id(tensor), tensor).float()
        return copies[id(tensor)]

    wide_args, wide_kwargs = tree_map_only(torch.Tensor, widened, (args, kwargs))
    if wide_kwargs.get("dtype") is torch.float16:
        wide_kwargs = {**wide_kwargs, "dtype": torch.float32}
    return func(*wide_args, **wide_kwargs), copies
