"""What every test leaves as it found it."""

import os
from collections.abc import Iterator

import pytest

_OF_THE_DEVICE = ("IPU_SIMULATOR_", "POPTORCH_")


@pytest.fixture(autouse=True)
def device_variables_kept() -> Iterator[None]:
    """A run tells the simulator its machine and precision through the environment of its process, which
    tests share."""
    before = {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_DEVICE)}
    yield
    for name in [name for name in os.environ if name.startswith(_OF_THE_DEVICE) and name not in before]:
        del os.environ[name]
    os.environ.update(before)
