"""What can be known before a run: verdicts, remedies, placements, and the check against measurements."""

from __future__ import annotations

import ipu

# The engine, by its name; the poptorch beside it stays behind any other that is installed.
ipu.make_simulator_importable()
