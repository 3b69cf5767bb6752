"""A model's number of parameters and FLOPs.

Letters: h hidden size, L layers, V vocabulary, S sequence length, M masked positions, G feed-forward
groups, g channels per convolution group, k convolution kernel. A multiply-add is two FLOPs. Only matmuls and
convolutions count (attention as two matmuls, including padding); softmax, LayerNorm, activations, additions
and lookups don't. torch.utils.flop_counter uses the same rules; for the forward pass the results are equal.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .config import ModelConfig
from .heads import TASKS


def count_parameters(model: nn.Module) -> int:
    """The number of trainable scalars; the tied vocabulary projection counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class _WithoutInitialisation(TorchFunctionMode):
    """Skips torch.nn.init. On the meta device newer PyTorch computes its shapes in Python, and imports its
    compiler for that: a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Inside, models are built on the meta device: shapes only, no memory, no random numbers."""
    with torch.device("meta"), _WithoutInitialisation():
        yield


def flops_per_sequence(
    config: ModelConfig,
    sequence_length: int,
    masked_tokens: int = 0,
    *,
    training: bool = False,
    head: str = "pretraining",
) -> int:
    """FLOPs of one sequence through the encoder and the `head` of a task; classification has two classes.

    Forward and backward passes together take three times the forward FLOPs: for a product X W, the gradients
    of X and of W cost as much as the product each (Kaplan et al. 2020, section 2.1). Recomputation and the
    optimiser aren't counted. Raises ValueError for an unknown head.
    """
    if head not in TASKS:
        raise ValueError(f"head is {head!r}, but must be one of {', '.join(TASKS)}")
    forward = config.num_layers * layer_flops(config, sequence_length)
    forward += TASKS[head].head_flops(config, sequence_length, masked_tokens)
    return 3 * forward if training else forward


def layer_flops(config: ModelConfig, sequence_length: int) -> int:
    """Forward FLOPs of one encoder layer for one sequence.

    A BERT layer has 24 h^2 S + 4 S^2 h (8 h^2 S for the attention's four projections, 4 S^2 h for its
    scores and context, 16 h^2 S for the feed-forward). A GroupBERT layer, with G = 4, has 38 h^2 S + 2 k g
    h S + 4 S^2 h.
    """
    hidden, tokens = config.hidden_size, sequence_length
    attention = 2 * tokens * 4 * hidden**2 + 2 * 2 * tokens**2 * hidden
    flops = attention + _feed_forward_flops(config, tokens)
    if config.convolution:
        # Values, gates and output projection; each output channel depends on k tokens of g channels.
        convolution = 2 * tokens * (3 * hidden**2 + config.conv_kernel_size * config.conv_group_size * hidden)
        flops += convolution + _feed_forward_flops(config, tokens)
    return flops


def _feed_forward_flops(config: ModelConfig, tokens: int) -> int:
    hidden, inner = config.hidden_size, config.inner_size
    products = hidden * inner
    products += hidden * inner if config.feed_forward == "dense" else hidden * inner // config.ffn_groups
    if config.feed_forward == "grouped_projected":
        products += hidden**2
    return 2 * tokens * products
