"""Predictions before a run: verdicts, remedies, placements, and their validation against measurements."""

from __future__ import annotations

import ipu

# Makes ipu_simulator importable; the poptorch beside it doesn't shadow an installed one.
ipu.make_simulator_importable()
