"""verdict.json: what programs read."""

from __future__ import annotations

import json
import math
from typing import Any

from .verdict import Verdict


def json_text(verdict: Verdict) -> str:
    """The verdict's plain form. A number that JSON has no word for (an infinite time) becomes null."""
    return json.dumps(_plain(verdict.to_dict()), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
