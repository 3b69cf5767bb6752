"""The simulator's engine: graphs, numerics, cost model, reports. It doesn't import the drop-in poptorch."""

from __future__ import annotations

# Version of this distribution; pyproject.toml reads it here.
__version__ = "0.1.0"
# The PopTorch version that the drop-in reproduces: poptorch.__version__.
POPTORCH_VERSION = "3.4.0+simulator"
