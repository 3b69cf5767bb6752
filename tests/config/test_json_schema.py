"""The JSON Schema is what the keys generate, takes every recipe and refuses what the program refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import config
from config.json_schema import schema, text
from config.recipes import read_recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def validator() -> Any:
    return pytest.importorskip("jsonschema").Draft7Validator(schema())


def test_the_file_is_what_the_program_writes() -> None:
    written = (ROOT / "configs.schema.json").read_text(encoding="utf-8")
    assert written == text(), "run python -m config.json_schema > configs.schema.json"
    first = (ROOT / "configs.yml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=configs.schema.json"


def test_every_recipe_is_valid(validator: Any) -> None:
    type(validator).check_schema(schema())
    recipes = json.loads(json.dumps(read_recipes(config.CONFIGS)))
    assert len(recipes) > 50
    assert not [
        f"{list(error.absolute_path)}: {error.message[:200]}" for error in validator.iter_errors(recipes)
    ]
    for name in config.names():
        resolved = yaml.safe_load(config.load(name).to_yaml())
        assert validator.is_valid(resolved), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("micro_batch_size", 0),
        ("micro_batch_size", 1.5),
        ("micro_batch_size", "none"),
        ("optimizer", "lam"),
        ("learning_rate", 0),
        ("learning_rate", "1e-3"),
        ("hidden_dropout", 1),
        ("layers_per_ipu", []),
        ("layers_per_ipu", ["x"]),
        ("max_grad_norm", -1),
        ("wandb", "yes"),
        ("squad_version", "3.0"),
        ("no_such_key", 1),
        ("corpus", None),
    ],
)
def test_what_the_program_refuses_is_invalid(validator: Any, key: str, value: object) -> None:
    assert not validator.is_valid({"mine": {key: value}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("micro_batch_size", "auto"),
        ("layers_per_ipu", "auto"),
        ("layers_per_ipu", [0, -1, -1]),
        ("layers_per_ipu", 3),
        ("max_grad_norm", None),
        ("max_grad_norm", "none"),
        ("squad_version", 1.1),
        ("squad_version", "2.0"),
        ("matmul_proportion", [0.1, 0.2]),
    ],
)
def test_what_the_program_takes_is_valid(validator: Any, key: str, value: object) -> None:
    assert validator.is_valid({"mine": {key: value}})
