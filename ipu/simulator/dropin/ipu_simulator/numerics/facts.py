"""What is known of an IPU's arithmetic: `facts.json`, each with its source and how sure it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def fact(name: str) -> Any:
    """The value of one fact."""
    text = Path(__file__).with_name("facts.json").read_text(encoding="utf-8")
    return json.loads(text)[name]["value"]
