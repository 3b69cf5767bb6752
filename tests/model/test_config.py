from __future__ import annotations

from dataclasses import replace

import pytest

from model import PRESETS, ModelConfig, ModelConfigError, SquadModel
from model.config import FEED_FORWARDS, NORMS
from tests.model.builders import GROUPBERT, VARIANTS


def test_variants_cover_the_space() -> None:
    assert {(config.norm, config.convolution, config.feed_forward) for config in VARIANTS.values()} == {
        (norm, convolution, kind) for norm in NORMS for convolution in (True, False) for kind in FEED_FORWARDS
    }


def test_named_points_are_the_two_families_in_five_sizes() -> None:
    sizes = ("tiny", "mini", "medium", "base", "large")
    assert set(PRESETS) == {f"{family}_{size}" for family in ("bert", "groupbert") for size in sizes}
    for name, config in PRESETS.items():
        assert config.is_groupbert == name.startswith("groupbert")
        assert config.is_bert == name.startswith("bert")
        assert config.head_size == 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 5}, ["num_heads 5 does not divide hidden_size 32", "num_heads 4 or 8", "30 or 35"]),
        (
            {"conv_group_size": 48},
            ["conv_group_size 48", "use conv_group_size 32, or hidden_size 48"],
        ),
        ({"ffn_groups": 3}, ["hidden_size 32", "ffn_groups 3", "30 or 33"]),
        ({"conv_kernel_size": 6}, ["conv_kernel_size 6 is even", "5 or 7"]),
        ({"norm": "both"}, ["norm is 'both'", "pre, post"]),
        ({"feed_forward": "sparse"}, ["feed_forward is 'sparse'", "dense, grouped, grouped_projected"]),
        ({"convolution": 1}, ["convolution is 1"]),
        ({"num_layers": 0}, ["num_layers is 0"]),
        ({"hidden_size": True}, ["hidden_size is True"]),
        ({"hidden_size": 32.0}, ["hidden_size is 32.0"]),
        ({"hidden_dropout": 1.0}, ["hidden_dropout is 1.0"]),
        ({"attention_dropout": "0.1"}, ["attention_dropout is '0.1'"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps is 0.0"]),
        ({"vocab_size": -1, "num_heads": 0}, ["vocab_size is -1", "num_heads is 0"]),
    ],
)
def test_what_is_no_model_is_refused_by_name(change: dict, words: list) -> None:
    with pytest.raises(ModelConfigError) as caught:
        replace(GROUPBERT, **change)
    for word in words:
        assert word in str(caught.value)


def test_groups_bind_only_those_who_use_them() -> None:
    ModelConfig(hidden_size=30, num_layers=1, num_heads=5, ffn_groups=4, conv_kernel_size=6)


def test_sequences_longer_than_the_position_embeddings_are_refused() -> None:
    import torch

    ids = torch.zeros(1, GROUPBERT.max_position_embeddings + 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"25 tokens, but .* only 24 position"):
        SquadModel(GROUPBERT)(ids, torch.ones_like(ids), ids)
