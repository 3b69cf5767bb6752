from __future__ import annotations

import pytest
import torch

from model import (
    PRESETS,
    ClassificationModel,
    PretrainingModel,
    SquadModel,
    count_parameters,
    flops_per_sequence,
)
from model.config import ModelConfig
from tests.model.builders import VARIANTS

FlopCounterMode = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode  # torch 2.1

PUBLISHED_PARAMETERS = {
    "bert_tiny": 4_433_468,
    "bert_mini": 11_267_900,
    "bert_medium": 41_668_412,
    "bert_base": 110_106_428,
    "bert_large": 336_226_108,
    "groupbert_tiny": 4_696_124,
    "groupbert_mini": 13_235_516,
    "groupbert_medium": 56_877_884,
    "groupbert_base": 160_842_044,
    "groupbert_large": 515_559_228,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        assert count_parameters(PretrainingModel(PRESETS[name])) == PUBLISHED_PARAMETERS[name]


def counted(config: ModelConfig, head: str, size: int, tokens: int, masked: int) -> tuple:
    """What torch counts for a batch: forward alone, and backward by operator. On the meta device."""
    with torch.device("meta"):
        ids = torch.zeros(size, tokens, dtype=torch.int32)
        positions, one = torch.zeros(size, masked, dtype=torch.int32), torch.zeros(size, dtype=torch.int32)
        if head == "squad":
            model, inputs = SquadModel(config), (ids, ids, ids, one, one)
        elif head == "glue":
            model, inputs = ClassificationModel(config), (ids, ids, ids, one)
        else:
            model, inputs = PretrainingModel(config), (ids, ids, ids, positions, positions, one)
    with FlopCounterMode(display=False) as forward:
        loss = model(*inputs)[0]
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), dict(backward.get_flop_counts()["Global"])


@pytest.mark.parametrize("head", ["pretraining", "squad", "glue"])
@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_what_torch_counts(name: str, head: str) -> None:
    forward, _ = counted(VARIANTS[name], head, 3, 20, 5)
    assert forward == 3 * flops_per_sequence(VARIANTS[name], 20, 5, head=head)


@pytest.mark.parametrize("name", PRESETS)
def test_forward_of_the_named_points_is_what_torch_counts(name: str) -> None:
    forward, _ = counted(PRESETS[name], "pretraining", 1, 128, 20)
    assert forward == flops_per_sequence(PRESETS[name], 128, 20)


@pytest.mark.parametrize("head", ["pretraining", "squad", "glue"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_training_is_what_torch_counts_where_nothing_is_grouped(norm: str, head: str) -> None:
    config = VARIANTS[f"{norm}-plain-dense"]
    forward, backward = counted(config, head, 2, 20, 5)
    assert forward + sum(backward.values()) == 2 * flops_per_sequence(config, 20, 5, head=head, training=True)


def test_training_without_its_convolutions_is_what_torch_counts_without_them() -> None:
    """torch overcounts a grouped convolution's backward pass by the number of groups, nothing else."""
    config = VARIANTS["pre-convolution-grouped_projected"]
    _, backward = counted(config, "pretraining", 1, 20, 5)
    dense = sum(flops for name, flops in backward.items() if "convolution" not in str(name))
    hidden, layers = config.hidden_size, config.num_layers
    grouped = layers * 2 * 20 * (7 * 8 * hidden + 2 * hidden * 4 * hidden // 4)
    assert dense + 2 * grouped == 2 * flops_per_sequence(config, 20, 5)


@pytest.mark.parametrize(
    ("name", "encoder", "whole"),  # published table, forward GFLOP at S = 128, M = 20, rounded as there
    [
        ("bert_base", 22.347, 23.310),
        ("bert_large", 78.920, 80.214),
        ("groupbert_base", 35.295, 36.257),
        ("groupbert_large", 124.722, 126.016),
    ],
)
def test_figures_of_the_literature(name: str, encoder: float, whole: float) -> None:
    config = PRESETS[name]
    heads = flops_per_sequence(config, 128, 20) - whole * 1e9
    assert abs(heads) < 0.001e9
    squad_head = 4 * 128 * config.hidden_size
    assert abs(flops_per_sequence(config, 128, head="squad") - squad_head - encoder * 1e9) < 0.001e9


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match="'ner'"):
        flops_per_sequence(PRESETS["bert_tiny"], 128, head="ner")
