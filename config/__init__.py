"""The configuration: recipes of configs.yml, read into one typed, checked object; one key, one flag."""

from __future__ import annotations

from .flags import FlagParser
from .recipes import ConfigError, nearest
from .rules import TARGET_IPUS, balanced_layers
from .schema import (
    ANY,
    AUTO,
    AUTO_KEYS,
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

__all__ = [
    "ANY",
    "AUTO",
    "AUTO_KEYS",
    "CONFIGS",
    "TARGET_IPUS",
    "Config",
    "ConfigError",
    "FlagParser",
    "add_flags",
    "balanced_layers",
    "derived",
    "free_keys",
    "load",
    "names",
    "nearest",
    "overrides_from",
    "read_recipe",
]
