"""The engine that executes steps, from inside the drop-in."""

from __future__ import annotations

import importlib

from ._engine import ENGINE_NAME, load

load()
numerics = importlib.import_module(f"{ENGINE_NAME}.numerics")
update_rules = importlib.import_module(f"{ENGINE_NAME}.numerics.update_rules")
