"""The numbers that a verdict rests on: constants, costs of vertices and hardware facts, with unit and source.

The models of time and memory name those that act on a program; here they get their values. Coefficients of
poplibs' formulas (matrix_unit.py) aren't listed: the formula's source stands beside each.
"""

from __future__ import annotations

from typing import Collection

from ..environment import Target, facts
from .constants import memory_assumptions, time_assumptions
from .op_table import operation_assumptions
from .verdict import Assumption


def assumptions_of(names: Collection[str], target: Target) -> tuple[Assumption, ...]:
    """The numbers of these names: constants of time and of memory, of operations, facts of `target`."""
    found = tuple(
        each
        for each in (*time_assumptions(), *memory_assumptions(), *operation_assumptions(), *_machine(target))
        if each.name in names
    )
    assert len(found) == len(names), set(names) - {each.name for each in found}
    return found


def _machine(target: Target) -> tuple[Assumption, ...]:
    """Hardware facts; what rests on hearsay alone counts as assumed."""
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
