"""Programs of the recipes, captured once for recipes that differ in settings only."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from config import Config, load
from planning import dry_run

# What the graph of a micro batch depends on.
_OF_GRAPH = (
    "task micro_batch_size sequence_length mask_tokens layers_per_ipu embedding_serialization_factor "
    "precision recompute_checkpoint_every_layer optimizer packed_data max_sequences_per_pack"
).split()


@functools.cache
def recipe(name: str, **overrides: Any) -> Config:
    return load(name, overrides={"device": "simulator", **overrides})


def program(config: Config) -> tuple[Any, Any]:
    """(graph, settings) of a configuration."""
    key = (repr(config.model_config()), *(repr(getattr(config, name)) for name in _OF_GRAPH))
    if key not in _captured:
        _captured[key] = dry_run.program_of(config)
    graph, settings = _captured[key]
    state = (2 if config.enable_half_first_order_momentum else 4, 4)
    optimizer = replace(
        settings.optimizer,
        location=config.optimizer_state,
        sharded=config.replicated_tensor_sharding,
        state_bytes_per_element=state,
    )
    return graph, replace(
        settings,
        replicas=config.replication_factor,
        gradient_accumulation=config.gradient_accumulation,
        matmul_proportions=config.matmul_proportion,
        optimizer=optimizer,
    )


_captured: dict[tuple[str, ...], tuple[Any, Any]] = {}
