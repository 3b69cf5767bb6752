"""What a program may ask about the machine."""

from __future__ import annotations

from . import poptorch_core


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether that many IPUs answer. The simulator stands for them, unless the IPU model is asked for."""
    return bool(poptorch_core.ipuHardwareVersion(num_ipus))


def ipuHardwareVersion() -> int:
    """The IPUs' hardware version: 2. AssertionError where there are none."""
    version = poptorch_core.ipuHardwareVersion()
    assert version, "No IPU hardware available on this system"
    return version
