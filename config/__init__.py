"""The configuration: recipes of configs.yml, parsed into one typed, validated object; one flag per key."""

from __future__ import annotations

from .config import (
    CONFIGS,
    Config,
    add_flags,
    derived,
    free_keys,
    load,
    names,
    overrides_from,
    read_recipe,
)
from .flags import FlagParser
from .recipes import ConfigError, nearest
from .schema import ANY, AUTO, AUTO_KEYS, OptimizerKeys, RunKeys, defaults, keys_that_alter, unread_keys
from .screen import changed_batch, recipe_lines, summary, text_table

__all__ = [
    "ANY",
    "AUTO",
    "AUTO_KEYS",
    "CONFIGS",
    "Config",
    "ConfigError",
    "FlagParser",
    "OptimizerKeys",
    "RunKeys",
    "add_flags",
    "changed_batch",
    "defaults",
    "derived",
    "free_keys",
    "keys_that_alter",
    "load",
    "names",
    "nearest",
    "overrides_from",
    "read_recipe",
    "recipe_lines",
    "summary",
    "text_table",
    "unread_keys",
]
