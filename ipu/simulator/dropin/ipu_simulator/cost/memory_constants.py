"""The memory model's constants, from memory_constants.yml: each with its unit, origin and source."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..report.verdict import Assumption

_FILE = Path(__file__).with_name("memory_constants.yml")


@dataclass(frozen=True)
class MemoryConstants:
    """Values by name as in the file, which says what they are. `assumptions` are the same for reports."""

    tile_imbalance: float
    code_bytes_fixed: float
    code_bytes_per_distinct_operation: float
    code_bytes_per_call: float
    exchange_code_bytes_per_compute_set: float
    exchange_code_bytes_per_collective: float
    stream_buffers_per_tensor: float
    sharding_threshold_elements: float
    update_bytes_per_element: float
    assumptions: tuple[Assumption, ...] = ()


@functools.cache
def memory_constants() -> MemoryConstants:
    """The shipped constants."""
    entries = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return MemoryConstants(
        **{name: float(entry["value"]) for name, entry in entries.items()},
        assumptions=tuple(
            Assumption(name, float(entry["value"]), entry["unit"], entry["origin"], entry["source"])
            for name, entry in entries.items()
        ),
    )
