"""What a compilation leaves in the folder of Options.enableExecutableCaching.

Compiling takes the simulator no time, so there is nothing to read back: a note of what was compiled stands
for PopART's executable, under a name that is the same for the same program and options.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .poptorch_core import usesIpuModel


def leave_note(options: Any, ir: str) -> None:
    """Writes the note if the options ask for a cache, unless it is there already."""
    values = options._Popart.options
    if not values.get("enableEngineCaching") or not values.get("cachePath") or usesIpuModel(options._values):
        return
    folder = Path(values["cachePath"])
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"options": repr(options), "graph": json.loads(ir)})
    note = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.popef"
    if not note.exists():
        partial = note.with_suffix(".part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(note)
