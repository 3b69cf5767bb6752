"""Repeating a captured layer gives the very graph of a capture of all layers."""

from __future__ import annotations

from typing import Any

import pytest

import config as configuration
from planning import dry_run

pytestmark = pytest.mark.slow

SIX: Any = {"num_layers": 6, "ipus_per_replica": 4, "layers_per_ipu": (0, 1, 3, 2), "device": "simulator"}
PRETRAINING: Any = {**SIX, "gradient_accumulation": 16, "target": "pod16"}
CASES: Any = {
    "bert": ("test_bert", {}),
    "groupbert": ("test_groupbert", {}),
    "dropout": ("test_bert", {"hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "groupbert with dropout": ("test_groupbert", {"hidden_dropout": 0.1}),
    "float32": ("test_groupbert", {"precision": "float32"}),
    "every activation kept": ("test_bert", {"recompute_checkpoint_every_layer": False}),
    "one hot, in slices": (
        "test_bert",
        {"one_hot_masked_positions": True, "embedding_serialization_factor": 2},
    ),
    "sgd": ("test_bert", {"optimizer": "sgd", "max_grad_norm": None}),
    "pre-norm BERT": ("test_bert", {"norm": "pre"}),
    "grouped without projection": ("test_groupbert", {"feed_forward": "grouped"}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_repeated_layer_is_a_captured_one(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name, changes = CASES[case]
    config = configuration.load(name, overrides={**PRETRAINING, **changes})
    asked = []

    def never(*arguments: Any) -> Any:
        asked.append(arguments)
        raise dry_run.Unequal("so that all layers are captured")

    found = dry_run.program_of(config)
    monkeypatch.setattr(dry_run, "repeated", never)
    assert found == dry_run.program_of(config)
    assert asked


def test_a_head_in_the_last_layers_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration.load("squad_bert_base_384", overrides={"device": "simulator"})
    found = dry_run.program_of(config)

    def never(*arguments: Any) -> Any:
        raise dry_run.Unequal("so that all layers are captured")

    monkeypatch.setattr(dry_run, "repeated", never)
    assert found == dry_run.program_of(config)
