"""The one fact about machines that measurements on IPUs need; the simulator isn't importable there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import yaml

import ipu

_FOLDER = Path(ipu.__file__).with_name("targets")


def peak_flops(target: str) -> float:
    """FLOP/s of one IPU of `target`: its matrix units in float16, a multiply-add being two (derived from the
    facts in ipu/targets, which have their sources there)."""
    facts = _facts(target)
    per_cycle = facts["half_macs_per_cycle"]["value"] * facts["tiles_per_ipu"]["value"]
    return float(2.0 * per_cycle * facts["clock_hz"]["value"])


def _facts(name: str) -> Dict[str, Any]:
    content = yaml.safe_load((_FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    parent = content.pop("extends", None)
    return {**(_facts(parent) if parent else {}), **content}
