"""Implicit casts: an operation on float16 and float32 operands computes in float32.

PyTorch promotes in arithmetic but refuses the same mixture in products, normalisations and scatters. And what
it has no float16 kernel for on a CPU, it computes in float32.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ._structure import map_leaves, tensors

_REFUSED_BY_PYTORCH = frozenset(
    {
        "__matmul__",
        "__rmatmul__",
        "addbmm",
        "addmm",
        "addmv",
        "baddbmm",
        "batch_norm",
        "bilinear",
        "binary_cross_entropy",
        "bmm",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "cross_entropy",
        "dot",
        "einsum",
        "group_norm",
        "gru",
        "gru_cell",
        "heaviside",
        "huber_loss",
        "index_add",
        "index_copy",
        "index_put",
        "inner",
        "instance_norm",
        "layer_norm",
        "lerp",
        "linalg_multi_dot",
        "linear",
        "lstm",
        "lstm_cell",
        "masked_scatter",
        "matmul",
        "mm",
        "multi_dot",
        "multi_head_attention_forward",
        "mv",
        "nll_loss",
        "prelu",
        "rms_norm",
        "rnn_relu",
        "rnn_relu_cell",
        "rnn_tanh",
        "rnn_tanh_cell",
        "scaled_dot_product_attention",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "tensordot",
        "vdot",
    }
)


# The same, but the result is written into the first operand: the others take its type.
_REFUSED_IN_PLACE = frozenset(
    {
        "index_add_",
        "index_copy_",
        "index_put_",
        "lerp_",
        "masked_scatter_",
        "scatter_",
        "scatter_add_",
        "scatter_reduce_",
    }
)
# PyTorch has no float16 kernels for these on a CPU, and says so too late (in a backward pass) or not at all.
_WITHOUT_FLOAT16 = frozenset({"cdist", "ctc_loss", "local_response_norm", "rrelu"})
# These refuse numbers that float16 hasn't got, which masks are full of; the device takes the largest it has.
_TAKES_NUMBER = frozenset(
    {
        "clamp",
        "clamp_",
        "clip",
        "clip_",
        "fill_",
        "full",
        "full_like",
        "masked_fill",
        "masked_fill_",
        "new_full",
        "pad",
    }
)
_LARGEST = torch.finfo(torch.float16).max


class ImplicitCasts(TorchFunctionMode):
    """Inside, float16 operands become float32 where they meet float32 ones, and numbers fit into float16.

    `has_cast`: whether there was any need of it; a compilation finds out, so that other programs are spared
    the look at every call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_cast = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _WITHOUT_FLOAT16 and args[0].dtype is torch.float16:
            return self._widened(func, args, kwargs)
        if name in _REFUSED_BY_PYTORCH or name in _REFUSED_IN_PLACE:
            dtypes = {tensor.dtype for tensor in tensors((list(args), dict(kwargs)))}
            if torch.float16 in dtypes and torch.float32 in dtypes:
                self.has_cast = True
                dtype = args[0].dtype if name in _REFUSED_IN_PLACE else torch.float32
                args, kwargs = map_leaves((tuple(args), dict(kwargs)), lambda leaf: _cast(leaf, dtype))
        elif name in _TAKES_NUMBER and _makes_float16(args, kwargs):
            self.has_cast = True
            args, kwargs = map_leaves((tuple(args), dict(kwargs)), _saturated)
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            # What PyTorch refuses for other reasons it refuses in float32 as well.
            if not any(tensor.dtype is torch.float16 for tensor in tensors((list(args), dict(kwargs)))):
                raise
            with contextlib.suppress(RuntimeError):
                return self._widened(func, args, kwargs)
            raise

    def _widened(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Computed in float32; the result is float16 again, but for a mixture's."""
        mixed = any(tensor.dtype is torch.float32 for tensor in tensors((list(args), dict(kwargs))))
        wide_args, wide_kwargs = map_leaves(
            (tuple(args), dict(kwargs)), lambda leaf: _cast(leaf, torch.float32)
        )
        result = func(*wide_args, **wide_kwargs)
        self.has_cast = True
        if getattr(func, "__name__", "").endswith("_"):
            return args[0].copy_(result)
        return result if mixed else map_leaves(result, lambda leaf: _cast(leaf, torch.float16))

    def __enter__(self):
        torch.nn.RNNBase.check_input = _check_input_of_any_float
        return super().__enter__()

    def __exit__(self, *exception):
        torch.nn.RNNBase.check_input = _CHECK_INPUT
        super().__exit__(*exception)


_CHECK_INPUT = torch.nn.RNNBase.check_input


def _check_input_of_any_float(layer: torch.nn.RNNBase, input: torch.Tensor, batch_sizes: Any) -> None:
    """What a recurrent layer checks of its input, but for the type."""
    _CHECK_INPUT(layer, input.to(layer._flat_weights[0].dtype), batch_sizes)


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    both = (torch.float16, torch.float32)
    return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.dtype in both else leaf


def _makes_float16(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    source = args[0].dtype if args and isinstance(args[0], torch.Tensor) else None
    return (kwargs.get("dtype") or source) is torch.float16


def _saturated(leaf: Any) -> Any:
    """Numbers only: a positive integer may be a size."""
    if isinstance(leaf, float) or (isinstance(leaf, int) and leaf < 0):
        return leaf if math.isinf(leaf) or math.isnan(leaf) else max(-_LARGEST, min(leaf, _LARGEST))
    if isinstance(leaf, torch.Tensor) and leaf.dim() == 0 and leaf.dtype is torch.float32:
        return torch.where(leaf.isinf(), leaf, leaf.clamp(-_LARGEST, _LARGEST))
    return leaf
