"""The simulator's engine: what the drop-in poptorch stands on. It knows nothing of PopTorch's surface."""

from __future__ import annotations

# The distribution's own version: it counts releases of the simulator (pyproject.toml reads it here).
__version__ = "0.1.0"
# PopTorch's version whose behaviour this is: poptorch.__version__.
POPTORCH_VERSION = "3.4.0+simulator"
