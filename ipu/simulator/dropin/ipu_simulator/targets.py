"""The machines that the simulator can stand for: hardware facts, from data files with their sources.

`targets/NAME.yml` describes a machine; `extends` names the file that it adds to (a chip, then what all
chips share).
"""

from __future__ import annotations

import difflib
import functools
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Mapping

import yaml

VARIABLE = "IPU_SIMULATOR_TARGET"
DEFAULT = "pod16"

# GC200 machines, and those of the Bow generation; the number in a name is that of its IPUs.
NAMES = "pod4 pod16 pod64 pod128 pod256 bow-pod4 bow-pod16 bow-pod64 bow-pod128 bow-pod256".split()

_FOLDER = Path(__file__).resolve().parent / "targets"


class UnknownTarget(ValueError):
    """A machine that the simulator doesn't know."""


@dataclass(frozen=True)
class Fact:
    """A hardware fact with its source; confidence is high, medium or low."""

    name: str
    value: float
    unit: str
    source: str
    confidence: str


@dataclass(frozen=True)
class Target:
    """A machine. Each field is a fact of the same name in the data files, which give unit and source.

    Rates are of one tile, link or M2000 (a machine of four IPUs), as their units in the files say.
    """

    name: str
    num_ipus: int
    ipus_per_m2000: int
    tiles_per_ipu: int
    worker_threads_per_tile: int
    bytes_per_tile: int
    clock_hz: float
    half_macs_per_cycle: int
    half_float_partials_macs_per_cycle: int
    float_macs_per_cycle: int
    load_bytes_per_cycle: int
    exchange_bytes_per_cycle: float
    shared_exchange_bytes_per_cycle: float
    link_bytes_per_s: float
    links_between_ipus: int
    link_efficiency: float
    streaming_memory_bytes_per_s: float
    streaming_memory_bytes: float
    host_bytes_per_s: float

    @property
    def bytes_per_ipu(self) -> int:
        return self.tiles_per_ipu * self.bytes_per_tile

    @property
    def peak_flops_per_s(self) -> float:
        """Of one IPU: AMP, float16 with float16 partials, a multiply-add being two FLOPs."""
        return 2.0 * self.half_macs_per_cycle * self.tiles_per_ipu * self.clock_hz

    @property
    def ipu_link_bytes_per_s(self) -> float:
        """What passes between two IPUs of a pipeline in one direction."""
        return self.link_bytes_per_s * self.links_between_ipus * self.link_efficiency


def target(name: str | None = None) -> Target:
    """A machine by name; without one, the machine that IPU_SIMULATOR_TARGET names now, else a pod16.

    Raises UnknownTarget.
    """
    asked = name or os.environ.get(VARIABLE) or DEFAULT
    if asked not in NAMES:
        likely = difflib.get_close_matches(asked.lower(), NAMES, n=1, cutoff=0.0)
        where = f"target is {asked!r}" if name else f"{VARIABLE} is {asked!r}"
        raise UnknownTarget(
            f"{where}, which is no target of the simulator: the nearest is {likely[0]!r} "
            f"(all: {', '.join(NAMES)})"
        )
    return _load(asked)


def facts(name: str) -> tuple[Fact, ...]:
    """The hardware facts of a target, chip and machine, each with unit, source and confidence."""
    return tuple(Fact(key, **fact) for key, fact in _entries(name).items())


@functools.cache
def _load(name: str) -> Target:
    values: dict[str, Any] = {fact.name: fact.value for fact in facts(name)}
    types = {field.name: field.type for field in fields(Target)}
    counts = {key: int(value) for key, value in values.items() if types[key] == "int"}
    return Target(name=name, **{**values, **counts})


def _entries(name: str) -> dict[str, Mapping[str, Any]]:
    content = yaml.safe_load((_FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    parent = content.pop("extends", None)
    return {**(_entries(parent) if parent else {}), **content}
