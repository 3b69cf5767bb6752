"""Small models and batches for the tests of this room."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Tuple

import torch
from torch import Tensor, nn

from model import ModelConfig
from model.heads import initialise

BERT = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, vocab_size=96, max_position_embeddings=24)
GROUPBERT = replace(BERT, norm="pre", convolution=True, feed_forward="grouped_projected", conv_group_size=8)

# Every way in which two points of the space can differ.
VARIANTS: Dict[str, ModelConfig] = {
    f"{norm}-{'convolution' if convolution else 'plain'}-{feed_forward}": replace(
        GROUPBERT, norm=norm, convolution=convolution, feed_forward=feed_forward
    )
    for norm in ("pre", "post")
    for convolution in (False, True)
    for feed_forward in ("dense", "grouped", "grouped_projected")
}


def perturb(model: nn.Module, seed: int = 0) -> None:
    """Random values for every parameter, so that none hides behind a zero or a one."""
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def batch(
    config: ModelConfig, *, lengths: Tuple[int, ...] = (20, 11, 16, 3), masked: int = 5, seed: int = 1
) -> Tuple[Tensor, ...]:
    """The six int32 tensors of a pretraining batch of 20 tokens, padded, with unused masked positions."""
    generator = torch.Generator().manual_seed(seed)
    size, tokens = len(lengths), 20

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)

    attention_mask = (torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)).int()
    positions = draw(min(lengths), size, masked)
    labels = draw(config.vocab_size, size, masked)
    positions[:, -2:], labels[:, -2:] = 0, -100
    next_sentence = draw(2, size)
    next_sentence[-1] = -100
    token_types = draw(2, size, tokens) * attention_mask
    return (
        draw(config.vocab_size, size, tokens),
        attention_mask,
        token_types,
        positions,
        labels,
        next_sentence,
    )
