"""bfloat16 (IPU_SIMULATOR_PRECISION=bfloat16): rewrites a tape, whose calls were recorded in float32.

Products get operands in bfloat16 and give bfloat16. Elementwise operations, softmax, layer norm and changes
of shape between two products stay in bfloat16. Everything else gets the float32 tensors that it was recorded
with: losses, reductions, indexing, recurrent layers, and sums of two tensors of one size of which one is
float32 (a residual stream). The results of the forward are float32.

A forward that writes to its tensors in place, or that runs its Python each time, has no such tape: there each
product is rounded by itself, and gives float32 (`Products`).
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import torch
from ipu_simulator.numerics import bfloat16, fused

from .._run.structure import map_leaves
from . import Call
from .replay import Slot, TapedCall, mapped

# Functions by name, as calls see them. Products:
_PRODUCTS = frozenset(
    {
        "__matmul__",
        "__rmatmul__",
        "addbmm",
        "addmm",
        "baddbmm",
        "bmm",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "einsum",
        "linear",
        "matmul",
        "mm",
        "multi_head_attention_forward",
        "scaled_dot_product_attention",
        "tensordot",
    }
)
# Of tensors that are all bfloat16: one operand, or a list.
_FOLLOWING = frozenset(
    {
        "__get__",  # attributes: T, mT
        "__getitem__",
        "alpha_dropout",
        "cat",
        "chunk",
        "clone",
        "contiguous",
        "dropout",
        "dropout1d",
        "dropout2d",
        "elu",
        "expand",
        "expand_as",
        "flatten",
        "gelu",
        "glu",
        "hardswish",
        "leaky_relu",
        "mish",
        "movedim",
        "narrow",
        "neg",
        "permute",
        "relu",
        "repeat",
        "reshape",
        "roll",
        "select",
        "sigmoid",
        "silu",
        "softmax",
        "split",
        "squeeze",
        "stack",
        "swapaxes",
        "t",
        "tanh",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
    }
)
# Of a bfloat16 tensor as large as the result, and smaller ones, which are rounded: masks, scales, biases.
_ARITHMETIC = frozenset(
    {"__radd__", "__rmul__", "__rsub__", "add", "div", "masked_fill", "mul", "sub", "true_divide", "where"}
)
# Of one bfloat16 tensor; weights stay float32.
_NORMS = frozenset({"layer_norm"})
# These change tensors that only they use.
_WRITE_STATISTICS = frozenset({"batch_norm", "instance_norm"})
# Losses that take bfloat16 logits, and compute in float32.
_LOSSES = (fused.cross_entropy, fused.nll_loss_of_log_softmax)
# Calls with a bfloat16 variant that differs from PyTorch's.
_INSTEAD: dict[str, Callable[..., Any]] = {
    "conv1d": bfloat16.conv1d,
    "scaled_dot_product_attention": bfloat16.attention,
    # Results of products may have other strides than in float32.
    "view": torch.Tensor.reshape,
}


class Value(NamedTuple):
    """A tensor of the tape: its type and size."""

    dtype: torch.dtype
    elements: int


class Products:
    """Listener for calls (watch.py): products of float32 tensors round their operands, and give float32."""

    def __init__(self, copies: bfloat16.WeightCopies) -> None:
        self._copies = copies

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _name(func) not in _PRODUCTS or not _is_float32(args, kwargs):
            return proceed(func, args, kwargs)
        args, kwargs = map_leaves((tuple(args), dict(kwargs)), self._rounded)
        return map_leaves(proceed(_instead(func), args, kwargs), _widened_leaf)

    def _rounded(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dtype is not torch.float32:
            return leaf
        if isinstance(leaf, torch.nn.Parameter):
            return self._copies.rounded(leaf)
        return bfloat16.saturated(leaf)


def _widened_leaf(leaf: Any) -> Any:
    is_narrow = isinstance(leaf, torch.Tensor) and leaf.dtype is torch.bfloat16
    return bfloat16.widened(leaf) if is_narrow else leaf


def _is_float32(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether all floating-point tensors are float32, and no type is asked for."""
    found: list[Any] = []
    mapped((args, kwargs), found.append)
    types = {leaf.dtype for leaf in found if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()}
    return types == {torch.float32} and not any(isinstance(leaf, torch.dtype) for leaf in found)


def _name(func: Any) -> str:
    return getattr(func, "__name__", "")


def _instead(func: Any) -> Any:
    return _INSTEAD.get(_name(func), func)


class Rewriting:
    """Rewrites the steps of a tape.

    :param values: of the tape, by place.
    :param copies: where the weights' copies come from.
    """

    def __init__(self, values: Sequence[Value], copies: bfloat16.WeightCopies) -> None:
        self._values = list(values)
        self._copies = copies
        self._steps: list[TapedCall] = []
        # bfloat16 results by the float32 tensor's place, and of those, the ones that were widened too.
        self._narrow: dict[int, int] = {}
        self._wide: set[tuple[int, bool]] = set()
        # Rounded float32 tensors, by place or id, rounding and whether gradients are enabled.
        self._rounded: dict[tuple[Any, ...], Slot] = {}

    def rewritten(self, steps: Sequence[TapedCall], results: Sequence[Any]) -> list[TapedCall]:
        """The steps; `results` are float32 as before."""
        keeps_types = any(step.writes and _name(step.func) not in _WRITE_STATISTICS for step in steps)
        for step in steps:
            if keeps_types:
                self._steps.append(self._by_itself(step))
            elif step.autocast is None and self._is_product(step):
                self._product(step)
            elif step.autocast is None and self._follows(step):
                self._following(step)
            else:
                self._in_float32(step)
        last = TapedCall(torch.clone, (), {}, torch.is_grad_enabled())
        for result in results:
            if isinstance(result, Slot):
                self._widen(result, last)
        return self._steps

    # ---- kinds of steps

    def _is_product(self, step: TapedCall) -> bool:
        types = {dtype for dtype, _ in self._operands(step)}
        made = {self._values[place].dtype for place in step.made}
        return _name(step.func) in _PRODUCTS and types == made == {torch.float32} and not _asks_for_type(step)

    def _follows(self, step: TapedCall) -> bool:
        name = _name(step.func)
        if any(self._values[place].dtype is not torch.float32 for place in step.made) or not step.made:
            return False
        if _asks_for_type(step) and name != "softmax":  # whose sums are float32 anyway
            return False
        slots = [leaf for leaf in _leaves(step) if isinstance(leaf, Slot) and self._is_float(leaf)]
        if not slots or any(self._values[slot.index].dtype is not torch.float32 for slot in slots):
            return False
        if name in _NORMS:
            return len(slots) == 1 and slots[0].index in self._narrow
        is_narrow = [slot.index in self._narrow for slot in slots]
        if name in _FOLLOWING:
            return all(is_narrow) and len(self._operands(step)) == len(slots)
        if name not in _ARITHMETIC or not any(is_narrow):
            return False
        size = self._values[step.made[0]].elements
        return all(
            narrow or elements < size
            for narrow, (_, elements) in zip(is_narrow, (self._values[slot.index] for slot in slots))
        ) and all(
            leaf.dtype is torch.float32 and leaf.numel() < size
            for leaf in _leaves(step)
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        )

    def _is_float(self, slot: Slot) -> bool:
        return self._values[slot.index].dtype.is_floating_point

    def _operands(self, step: TapedCall) -> list[Value]:
        """The floating-point tensors that a step takes."""
        found = [self._values[leaf.index] for leaf in _leaves(step) if isinstance(leaf, Slot)]
        found += [Value(leaf.dtype, leaf.numel()) for leaf in _leaves(step) if isinstance(leaf, torch.Tensor)]
        return [value for value in found if value.dtype.is_floating_point]

    # ---- steps

    def _by_itself(self, step: TapedCall) -> TapedCall:
        if not self._is_product(step) or step.autocast is not None:
            return step
        func, products = step.func, Products(self._copies)

        def product(*args: Any, **kwargs: Any) -> Any:
            return products.on_call(lambda f, a, k: f(*a, **k), func, args, kwargs)

        return step.with_call(product, step.args, step.kwargs)

    def _product(self, step: TapedCall) -> None:
        self._add_narrow(step, lambda leaf: self._round(leaf, step, bfloat16.rounded))

    def _following(self, step: TapedCall) -> None:
        name = _name(step.func)

        def converted(leaf: Any) -> Any:
            if name in _NORMS and isinstance(leaf, torch.Tensor):
                return leaf
            if isinstance(leaf, torch.dtype):
                return torch.bfloat16
            return self._round(bfloat16.saturated_number(leaf), step, bfloat16.saturated)

        self._add_narrow(step, converted)

    def _add_narrow(self, step: TapedCall, converted: Callable[[Any], Any]) -> None:
        args, kwargs = mapped((step.args, step.kwargs), converted)
        made = tuple(self._new(place) for place in step.made)
        self._steps.append(step.with_call(_instead(step.func), args, kwargs, made))
        for place, narrow in zip(step.made, made):
            self._narrow[place] = narrow

    def _in_float32(self, step: TapedCall) -> None:
        if step.func in _LOSSES and step.args[0].index in self._narrow:
            logits = Slot(self._narrow[step.args[0].index])
            step = step.with_call(step.func, (logits, *step.args[1:]), step.kwargs)
        for leaf in _leaves(step):
            if isinstance(leaf, Slot):
                self._widen(leaf, step)
        self._steps.append(step)

    # ---- conversions

    def _new(self, like: int) -> int:
        self._values.append(Value(torch.bfloat16, self._values[like].elements))
        return len(self._values) - 1

    def _widen(self, slot: Slot, step: TapedCall) -> None:
        """Makes a float32 tensor of a bfloat16 result, in its old place."""
        narrow = self._narrow.get(slot.index)
        if narrow is None or {(slot.index, step.grad_enabled), (slot.index, True)} & self._wide:
            return
        self._wide.add((slot.index, step.grad_enabled))
        self._steps.append(step.before(bfloat16.widened, (Slot(narrow),), slot.index))

    def _round(self, leaf: Any, step: TapedCall, rounding: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The place of a tensor's bfloat16 values."""
        if isinstance(leaf, Slot):
            if not self._is_float(leaf):
                return leaf
            if leaf.index in self._narrow:
                return Slot(self._narrow[leaf.index])
            key: Any = leaf.index
            elements = self._values[leaf.index].elements
        elif isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            key, elements = ("leaf", id(leaf)), leaf.numel()
            if isinstance(leaf, torch.nn.Parameter):
                rounding = self._copies.rounded
        else:
            return leaf
        known = (key, rounding, step.grad_enabled)
        if known not in self._rounded:
            self._values.append(Value(torch.bfloat16, elements))
            place = len(self._values) - 1
            self._steps.append(step.before(rounding, (leaf,), place))
            self._rounded[known] = Slot(place)
        return self._rounded[known]


def _leaves(step: TapedCall) -> list[Any]:
    found: list[Any] = []
    mapped((step.args, step.kwargs), found.append)
    return found


def _asks_for_type(step: TapedCall) -> bool:
    return "out" in step.kwargs or any(isinstance(leaf, torch.dtype) for leaf in _leaves(step))
