"""The configuration of a run: its keys, validated together, and derived quantities.

`load` reads a named recipe, applies the command line's overrides and validates the result, before anything
runs. `derived` has the quantities that follow from the keys (global batch size, pipeline stages, ...).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Optional, Set

import yaml

from ipu.placement import minimum_gradient_accumulation, pipeline_stages

from .flags import add_key_flags
from .recipes import MOST_PROBLEMS, ConfigError, Problem, Recipe, nearest, read_recipes
from .rules import rule_problems
from .schema import ANY, AUTO, AUTO_KEYS, GROUPS, Keys, entries, kinds, unread_keys

CONFIGS = Path(__file__).resolve().parents[1] / "configs.yml"


@dataclass(frozen=True)
class Config(Keys):
    """A complete configuration. Its constructor checks types and rules; ConfigError lists every problem."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = rule_problems(self)
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> Dict[str, Any]:
        """Every key with a plain value (lists instead of tuples), for YAML or JSON."""
        values = {name: getattr(self, name) for name in entries()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_yaml(self, name: str = "resolved") -> str:
        """A recipe file with this one recipe; `load(name, path=...)` of it returns an equal Config."""
        return yaml.safe_dump({name: self.to_dict()}, sort_keys=False, default_flow_style=None, width=110)


def names(path: Path = CONFIGS) -> List[str]:
    """The runnable recipes of a file, in file order; names that start with `_` only hold shared keys."""
    return [name for name in read_recipes(Path(path)) if not name.startswith("_")]


def load(name: str, *, path: Path = CONFIGS, overrides: Optional[Mapping[str, object]] = None) -> Config:
    """The recipe `name` of a file with `overrides` applied.

    Raises ConfigError for an unknown name or key, a value of the wrong type or range, and combinations that
    cannot run: all of them at once, with file and line for those in the recipe.
    """
    path = Path(path)
    recipe = read_recipe(name, path)
    values = {**recipe, **(overrides or {})}
    unknown = [
        # A suggestion takes milliseconds, and only the first problems are printed.
        Problem(
            word, f"is not a key; {nearest(word, entries())}" if number < MOST_PROBLEMS else "is not a key"
        )
        for number, word in enumerate(word for word in values if word not in entries())
    ]
    for word in AUTO_KEYS:
        if values.get(word) == AUTO:
            unknown.append(Problem(word, "is auto; use planning.placement.load, which searches for a value"))
            del values[word]
    try:
        config = Config(**{word: value for word, value in values.items() if word in entries()})
    except ConfigError as error:
        unknown.extend(error.problems)
    if unknown:
        mine = set(recipe) - set(overrides or {})
        lines = {word: f"{path.name}:{recipe.lines[word]}: " for word in mine}
        raise ConfigError([Problem("", f"{lines.get(problem.key, '')}{problem}") for problem in unknown])
    return config


def read_recipe(name: str, path: Path = CONFIGS) -> Recipe:
    """The keys of a runnable recipe, not validated, with their line numbers. Raises ConfigError."""
    recipes = read_recipes(path)
    if name.startswith("_") and name in recipes:
        raise ConfigError(f"{path}: {name!r} only holds keys that recipes share; it cannot run")
    if name not in recipes:
        runnable = [known for known in recipes if not known.startswith("_")]
        raise ConfigError(f"{path} has no configuration {name!r}; {nearest(name, runnable)}")
    return recipes[name]


def free_keys(name: str, path: Path, overrides: Optional[Mapping[str, object]] = None) -> Set[str]:
    """The keys of a recipe, with `overrides` applied, whose values are left to a search.

    Raises ConfigError if there is no such recipe.
    """
    given = {**read_recipe(name, path), **(overrides or {})}
    free = {key for key in AUTO_KEYS if given.get(key) == AUTO}
    layers = given.get("layers_per_ipu")
    if isinstance(layers, (list, tuple)) and ANY in layers:
        free.add("layers_per_ipu")
    return free


def add_flags(
    parser: argparse.ArgumentParser, task: Optional[str] = None, *, only: Optional[Collection[str]] = None
) -> None:
    """Adds a flag for each key to `parser`, in kebab case; flags not given don't appear in its result.

    --help leaves out the keys that `task`, if given, doesn't read. With `only`, there are no others, and none
    can be left to a search.
    """
    groups = {title: [entry for part in parts for entry in fields(part)] for title, parts in GROUPS.items()}
    if only is not None:
        groups = {title: [one for one in group if one.name in only] for title, group in groups.items()}
        groups = {title: group for title, group in groups.items() if group}
        add_key_flags(parser, groups, kinds(), searchable=(), searched=AUTO)
        return
    hidden = unread_keys(task) if task else ()
    add_key_flags(parser, groups, kinds(), searchable=AUTO_KEYS, searched=AUTO, hidden=hidden)


def overrides_from(namespace: argparse.Namespace) -> Dict[str, object]:
    """The configuration keys that were given on the command line."""
    return {name: value for name, value in vars(namespace).items() if name in entries()}


def derived(config: Config) -> Dict[str, Any]:
    """Every quantity derived from the keys; None if epochs are given instead of training_steps.

    `parameters` and `flops_per_sequence` (forward and backward) include the task's head.
    """
    steps = config.training_steps or None
    return {
        "norm": config.resolved_norm,
        "convolution": config.resolved_convolution,
        "feed_forward": config.resolved_feed_forward,
        "head_size": config.hidden_size // config.num_heads,
        "intermediate_size": config.intermediate_size or 4 * config.hidden_size,
        "ipus": config.ipus_per_replica * config.replication_factor,
        "pipeline_stages": pipeline_stages(config.layers_per_ipu, config.head),
        "minimum_gradient_accumulation": minimum_gradient_accumulation(config.layers_per_ipu, config.head),
        "global_batch_size": config.global_batch_size,
        "samples_per_device_call": config.samples_per_call,
        "tokens_per_step": config.global_batch_size * config.sequence_length,
        **(_packing_quantities(config) if config.packed_data else {}),
        "device_calls": None if steps is None else steps // config.device_iterations,
        "samples_total": None if steps is None else steps * config.sequences_per_step,
        "warmup_steps": None if steps is None else config.warmup_steps,
        **_model_quantities(config),
    }


def _packing_quantities(config: Config) -> Dict[str, Any]:
    """Of packed rows; `sequences_per_step` is an expectation."""
    return {
        "sequences_per_row": config.sequences_per_row,
        "sequences_per_step": config.sequences_per_step,
        "most_sequences_per_row": config.pack_depth,
        "mask_tokens_per_row": config.row_mask_tokens,
        "separator_tokens": config.separator_tokens,
    }


def _model_quantities(config: Config) -> Dict[str, int]:
    # Here, because it imports torch, which takes a second, and recipes can be read without it.
    from model import count_parameters, flops_per_sequence, without_weights

    plan = config.model_config()
    with without_weights():
        model = config.task_model.build(plan, seed=None, labels=config.class_names)
    flops = flops_per_sequence(
        plan, config.sequence_length, config.row_mask_tokens, training=True, head=config.task
    )
    return {
        "parameters": count_parameters(model),
        "flops_per_sequence": round(flops / config.sequences_per_row),
    }
