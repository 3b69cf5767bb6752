"""The way from the drop-in to the simulator it stands in.

A foreign program has only the drop-in's folder on its path, and may have packages of its own called `ipu`,
`model` or `data`. So the simulator is loaded by file, under a private top-level name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ENGINE_NAME = "_ipu_simulator"


def load() -> ModuleType:
    """The package ipu/simulator, as `_ipu_simulator`; its parts through importlib.import_module from then
    on.
    """
    if ENGINE_NAME in sys.modules:
        return sys.modules[ENGINE_NAME]
    folder = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location(
        ENGINE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[ENGINE_NAME] = module
    spec.loader.exec_module(module)
    return module


simulator = load()
keep_freed_memory = importlib.import_module(f"{ENGINE_NAME}.host_memory").keep_freed_memory
announce = importlib.import_module(f"{ENGINE_NAME}.announcement").announce
