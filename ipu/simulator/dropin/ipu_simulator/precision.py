"""How the simulator computes: in float32, or as an IPU does."""

from __future__ import annotations

import difflib
import os

VARIABLE = "IPU_SIMULATOR_PRECISION"
FLOAT32 = "float32"
IPU_FLOAT16 = "ipu-float16"
NAMES = (FLOAT32, IPU_FLOAT16)


class UnknownPrecision(ValueError):
    """A precision that the simulator doesn't have."""


def precision() -> str:
    """What IPU_SIMULATOR_PRECISION names now, else float32. Raises UnknownPrecision."""
    name = os.environ.get(VARIABLE) or FLOAT32
    if name not in NAMES:
        likely = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)
        raise UnknownPrecision(
            f"{VARIABLE} is {name!r}, which is no precision of the simulator: the nearest is {likely[0]!r} "
            f"(all: {', '.join(NAMES)})"
        )
    return name
