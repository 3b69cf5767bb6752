"""What every test leaves as it found it."""

import faulthandler
import gc
import os
from collections.abc import Iterator
from io import FileIO

import pytest
from ipu_simulator import environment

_OF_THE_DEVICE = ("IPU_SIMULATOR_", "POPTORCH_")
_terminal = FileIO(os.dup(2), "w")


def pytest_configure() -> None:
    """A process that crashes writes its stack to the terminal, though importing PopTorch redirects it."""
    import poptorch  # noqa: F401

    faulthandler.enable(file=_terminal)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests of a file run in one process, which sets up its fixtures once. `--dist loadgroup` begins
    with groups, so that quick tests keep all processes busy to the end."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector needn't look through it again in every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def device_variables_kept() -> Iterator[None]:
    """Tests share a process: its environment, and the machine and precision that a run chose for it."""
    chosen = dict(environment.choices)
    before = {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_DEVICE)}
    yield
    for name in [name for name in os.environ if name.startswith(_OF_THE_DEVICE) and name not in before]:
        del os.environ[name]
    os.environ.update(before)
    environment.choices.clear()
    environment.choices.update(chosen)
