"""`python -m ipu.simulator`, and `python path/to/ipu/simulator` where another package is called ipu."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Started by its path: Python put this folder first, where `ipu` can't be found.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from ipu.simulator.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
