"""Constants of the time and memory models, each with its unit, origin and source.

constants.json has those of the time model, fitted to published results or assumed; memory_constants.json has
those of the memory model. `assumptions_of` lists the numbers that a verdict depends on.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Mapping

from ..environment import Target, facts
from .verdict import Assumption
from .vertices import operation_assumptions

FILE = Path(__file__).with_name("constants.json")

# Slowdown of each framework's programs relative to PopART: the name of the constant; None is a factor of 1.
FRAMEWORK_FACTORS: Mapping[str, str | None] = {
    "PopART": None,
    "PopTorch": "poptorch_factor",
    "TF1": "tf1_factor",
    "TF2": "tf2_factor",
    "Paddle": "paddle_factor",
}


@dataclass(frozen=True)
class Constants:
    """Constants of the time model by name; constants.json has their meaning and unit."""

    matmul_factor: float
    compute_set_cycles: float
    rearrangement_cycles: float
    poptorch_factor: float
    collective_latency_s: float
    tf1_factor: float
    tf2_factor: float
    paddle_factor: float
    cycle_overhead_s: float
    call_overhead_s: float
    poptorch_sample_s: float
    poptorch_sample_of_replica_s: float
    remote_buffer_s: float
    update_cycles_per_tensor_of_state: float
    accumulation_cycles: float
    stash_cycles: float
    stash_in_8_bits_cycles: float

    def framework_factor(self, framework: str) -> float:
        name = FRAMEWORK_FACTORS[framework]
        return 1.0 if name is None else float(getattr(self, name))


@functools.cache
def entries() -> Mapping[str, Mapping[str, Any]]:
    """constants.json: "fitted" and "assumed", each a map from a constant's name to its entry."""
    content: Mapping[str, Mapping[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


@functools.cache
def constants() -> Constants:
    """The constants as shipped."""
    file = entries()
    values = {name: entry["value"] for group in ("fitted", "assumed") for name, entry in file[group].items()}
    return Constants(**{name: float(value) for name, value in values.items()})


def time_assumptions() -> tuple[Assumption, ...]:
    """All constants of the time model with their origin, for reports."""
    file = entries()
    fitted = [
        Assumption(name, float(entry["value"]), entry["unit"], "fitted", _fitted_on(entry))
        for name, entry in file["fitted"].items()
    ]
    assumed = [
        Assumption(name, float(entry["value"]), entry["unit"], "assumed", entry["source"])
        for name, entry in file["assumed"].items()
    ]
    return (*fitted, *assumed)


def _fitted_on(entry: Mapping[str, Any]) -> str:
    rows = entry.get("rows")
    return f"{entry['source']}; fitted on rows {rows}" if rows else str(entry["source"])


_FILE = Path(__file__).with_name("memory_constants.json")


@dataclass(frozen=True)
class MemoryConstants:
    """Constants of the memory model by name; memory_constants.json has their meaning and unit."""

    tile_imbalance: float
    code_bytes_fixed: float
    code_bytes_per_distinct_operation: float
    code_bytes_per_call: float
    exchange_code_bytes_per_compute_set: float
    exchange_code_bytes_per_collective: float
    stream_buffers_per_tensor: float
    sharding_threshold_elements: float
    update_bytes_per_element: float
    code_compute_sets_of_a_product: float


@functools.cache
def _memory_entries() -> Mapping[str, Mapping[str, Any]]:
    file = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: entry for name, entry in file.items() if name != "about"}


@functools.cache
def memory_constants() -> MemoryConstants:
    """The constants as shipped."""
    return MemoryConstants(**{name: float(entry["value"]) for name, entry in _memory_entries().items()})


def memory_assumptions() -> tuple[Assumption, ...]:
    """All constants of the memory model with their origin, for reports."""
    return tuple(
        Assumption(name, float(entry["value"]), entry["unit"], entry["origin"], entry["source"])
        for name, entry in _memory_entries().items()
    )


def assumptions_of(names: Collection[str], target: Target) -> tuple[Assumption, ...]:
    """The numbers of these names, with value, unit and source.

    They are constants of time and memory, costs of vertices, coefficients of the matrix unit's formulas, and
    facts of `target`. The models of time and memory name those that affect a program.
    """
    found = tuple(
        each
        for each in (*time_assumptions(), *memory_assumptions(), *operation_assumptions(), *_machine(target))
        if each.name in names
    )
    assert len(found) == len(names), set(names) - {each.name for each in found}
    return found


def _machine(target: Target) -> tuple[Assumption, ...]:
    """Hardware facts; those of low confidence count as assumed."""
    return tuple(
        Assumption(
            fact.name,
            float(getattr(target, fact.name)),
            fact.unit,
            "assumed" if fact.confidence == "low" else "published",
            f"{fact.source} (confidence: {fact.confidence})",
        )
        for fact in facts(target.name)
    )
