"""What stands at a padded position changes nothing at any other: exactly, in every module and dtype."""

from __future__ import annotations

from typing import Callable, Dict

import pytest
import torch
from torch import Tensor, nn

from model import ModelConfig, PretrainingModel, SquadModel
from model.encoder import Attention, Convolution, EncoderLayer, FeedForward, Residual, additive_mask
from tests.model.builders import GROUPBERT, VARIANTS, batch, perturb
from tests.old_hosts import needs_float16_on_cpu

DTYPES = [torch.float32, pytest.param(torch.float16, marks=needs_float16_on_cpu)]
LENGTHS = torch.tensor([20, 11, 16, 3])

MODULES: Dict[str, Callable[[ModelConfig], nn.Module]] = {
    "attention": Attention,
    "convolution": Convolution,
    "feed_forward": FeedForward,
    "attention_with_residual": lambda config: Residual(Attention(config), config),
    "convolution_with_residual": lambda config: Residual(Convolution(config), config),
    "feed_forward_with_residual": lambda config: Residual(FeedForward(config), config),
    "layer": EncoderLayer,
}


def run(name: str, module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    additive, real = additive_mask(mask, x.dtype), mask.to(x.dtype).unsqueeze(-1)
    if name == "layer":
        return module(x, real, additive)
    if name.startswith("attention"):
        return module(x, additive)
    return module(x, real) if name.startswith("convolution") else module(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_modules(name: str, norm: str, scale: float, dtype: torch.dtype) -> None:
    module = MODULES[name](VARIANTS[f"{norm}-convolution-grouped_projected"])
    perturb(module)
    module = module.to(dtype)
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(20) < LENGTHS.unsqueeze(1)).int()
    x = torch.randn(4, 20, 32, generator=generator).to(dtype)
    other = torch.where(
        mask.bool().unsqueeze(-1), x, scale * torch.randn(4, 20, 32, generator=generator).to(dtype)
    )
    real = mask.bool()
    before, after = run(name, module, x, mask), run(name, module, other, mask)
    assert before.dtype == dtype
    assert torch.isfinite(before).all() and torch.isfinite(after).all()
    assert torch.equal(before[real], after[real])
    if name != "convolution":  # which sets to zero what it finds there, and has no skip connection
        assert not torch.equal(before[~real], after[~real])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["pre-convolution-grouped_projected", "post-convolution-dense", "post-plain-dense"]
)
def test_whole_models(name: str, dtype: torch.dtype) -> None:
    config = VARIANTS[name]
    ids, mask, types, positions, labels, next_sentence = batch(config)
    other_ids = torch.where(mask.bool(), ids, (ids + 7) % config.vocab_size)
    other_types = torch.where(mask.bool(), types, 1 - types)

    pretraining = PretrainingModel(config)
    perturb(pretraining)
    pretraining.to(dtype)
    before = pretraining(ids, mask, types, positions, labels, next_sentence)
    after = pretraining(other_ids, mask, other_types, positions, labels, next_sentence)
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert all(output.dtype == torch.float32 and output.dim() == 0 for output in before)
    assert all(torch.isfinite(output) for output in before)

    squad = SquadModel(config)
    perturb(squad)
    squad.to(dtype)
    real = mask.bool()
    for logits, other in zip(squad(ids, mask, types), squad(other_ids, mask, other_types)):
        assert torch.equal(logits[real], other[real])


@pytest.mark.parametrize("name", ["pre-convolution-grouped_projected", "post-convolution-dense"])
def test_padding_changes_nothing_by_its_amount(name: str) -> None:
    """A sequence padded to 20 tokens gives the logits that it gives alone. Not bit by bit: shapes differ."""
    config = VARIANTS[name]
    model = SquadModel(config)
    perturb(model)
    model.double()
    ids, mask, types = batch(config)[:3]
    padded = model(ids, mask, types)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(
            ids[row : row + 1, :length], mask[row : row + 1, :length], types[row : row + 1, :length]
        )
        for whole, part in zip(padded, alone):
            torch.testing.assert_close(whole[row, :length], part[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_of_nothing_but_padding_gives_numbers(dtype: torch.dtype) -> None:
    """As in the rows that fill up a last batch."""
    model = SquadModel(GROUPBERT)
    perturb(model)
    model.to(dtype)
    ids = torch.zeros(2, 8, dtype=torch.int32)
    for logits in model(ids, ids, ids):
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_the_mask_is_finite_and_exactly_zero_after_the_softmax(dtype: torch.dtype) -> None:
    mask = additive_mask(torch.tensor([[1, 0]], dtype=torch.int32), dtype)
    assert mask.shape == (1, 1, 1, 2) and mask.dtype == dtype
    assert mask[..., 0] == 0
    for score in (-30000.0, -100.0, 0.0, 100.0, 20000.0):
        scores = torch.tensor([0.0, score], dtype=dtype) + mask
        assert torch.isfinite(scores).all()
        assert torch.equal(torch.softmax(scores, -1), torch.tensor([[[[1.0, 0.0]]]], dtype=dtype))
