"""The simulator's engine: what the drop-in poptorch stands on. It knows nothing of PopTorch's surface."""

from __future__ import annotations

# PopTorch's version whose behaviour this is.
POPTORCH_VERSION = "3.4.0+simulator"
