"""A JSON Schema of configs.yml, with which editors complete and check recipes. It is in configs.schema.json.

python -m config.json_schema > configs.schema.json
"""

from __future__ import annotations

import json
import math
from typing import Any, Dict

from ipu.keys import REQUIRED

from .recipes import choices_of, inner, is_optional, item_of
from .schema import ANY, AUTO, AUTO_KEYS, entries, kinds

_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def schema() -> Dict[str, Any]:
    """The schema of a file of recipes: a mapping of names to mappings of keys."""
    recipe = {
        "type": "object",
        "properties": {"<<": {"description": "keys that this recipe inherits"}, **_keys()},
        "additionalProperties": False,
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Recipes of run_pretraining.py, run_squad.py and run_glue.py",
        "type": "object",
        "additionalProperties": recipe,
    }


def _keys() -> Dict[str, Any]:
    return {name: _key(name) for name in entries()}


def _key(name: str) -> Dict[str, Any]:
    entry, kind = entries()[name], kinds()[name]
    described: Dict[str, Any] = {"description": entry.metadata["doc"]}
    if entry.default is not REQUIRED:
        default = entry.default
        described["default"] = list(default) if isinstance(default, tuple) else default
    item = item_of(kind)
    one = _value(item or kind, entry.metadata["bounds"])
    forms = [one]
    if item:
        if name == "layers_per_ipu":  # any number of layers
            one = {"anyOf": [one, {"const": ANY}]}
            forms = [one]
        forms.append({"type": "array", "items": one, "minItems": 1})
    if name in AUTO_KEYS:
        forms.append({"const": AUTO})
    if is_optional(kind):
        forms += [{"type": "null"}, {"enum": ["none", "None"]}]
    return {**described, **(forms[0] if len(forms) == 1 else {"anyOf": forms})}


def _value(kind: Any, bounds: str) -> Dict[str, Any]:
    choices = choices_of(kind)
    if choices:
        numbers = [float(choice) for choice in choices if choice.replace(".", "", 1).isdigit()]
        return {"enum": [*choices, *numbers]}
    found: Dict[str, Any] = {"type": _TYPES[inner(kind)]}
    if bounds:
        low, high = (float(end) for end in bounds[1:-1].split(","))
        found["minimum" if bounds[0] == "[" else "exclusiveMinimum"] = _plain(low)
        if math.isfinite(high):
            found["maximum" if bounds[-1] == "]" else "exclusiveMaximum"] = _plain(high)
    return found


def _plain(number: float) -> float:
    return int(number) if number.is_integer() else number


def text() -> str:
    """The content of configs.schema.json."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")
