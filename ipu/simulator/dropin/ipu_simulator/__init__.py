"""The simulator's engine: graphs, numerics, cost model, reports. It doesn't import the drop-in poptorch."""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (an IPU host has 3.8)
    _found = ".".join(map(str, sys.version_info[:3]))
    raise ImportError(f"the simulator's poptorch needs Python 3.10 or newer, but this is Python {_found}")

# Version of this distribution; pyproject.toml reads it here.
__version__ = "0.1.0"
# The PopTorch version that the drop-in reproduces: poptorch.__version__.
POPTORCH_VERSION = "3.4.0+simulator"
