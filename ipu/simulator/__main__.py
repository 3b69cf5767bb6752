"""`python -m ipu.simulator`, and `python path/to/ipu/simulator` where another package is called ipu."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "dropin"))

from ipu_simulator.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
