"""What every test leaves as it found it."""

import contextlib
import faulthandler
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ipu_simulator import environment

from tests.processes import children_of, command_of, is_alive

_OF_THE_DEVICE = ("IPU_SIMULATOR_", "POPTORCH_")
_terminal = FileIO(os.dup(2), "w")


def pytest_configure() -> None:
    """A process that crashes writes its stack to the terminal, though importing PopTorch redirects it."""
    import poptorch  # noqa: F401

    faulthandler.enable(file=_terminal)
    os._exit = _exit_told


_tests_process, _exit = os.getpid(), os._exit


def _exit_told(status: int) -> NoReturn:
    """os._exit, which in the process of the tests tells who called it; it is meant for their children."""
    if os.getpid() == _tests_process:
        faulthandler.dump_traceback(_terminal)
    _exit(status)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Tells the status of a process of pytest-xdist that ends in the middle (a negative one is the signal's
    number), and whether memory was short."""
    if not error:
        return
    status, kills = "unknown", ["oom_kill unknown"]
    with contextlib.suppress(Exception):  # names of execnet and xdist that may change
        status = node.gateway._io.popen.wait(timeout=10)
    with contextlib.suppress(OSError):  # processes that the kernel killed because memory was short
        kills = [line for line in Path("/proc/vmstat").read_text().splitlines() if "oom_kill" in line]
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    said = f"ended with status {status}; the largest process had {peak_bytes / 1e9:.2f} GB; {kills}"
    _terminal.write(f"{node.gateway.id} {said}\n".encode())


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


# Children of the interpreter's, which stay.
_OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """A process that outlives its test takes time and memory from later ones, and may signal them."""
    before, hooks = {*children_of(os.getpid())}, (sys.exit, sys.excepthook)
    yield
    if "WANDB_SERVICE" in os.environ:  # its process and threads outlive a run, and its hooks
        import wandb

        wandb.teardown()
        sys.exit, sys.excepthook = hooks
    left = [child for child in children_of(os.getpid()) if child not in before]
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        commands = {child: command_of(child) for child in left}
        left = [
            child for child in left if is_alive(child) and not any(map(commands[child].count, _OF_PYTHON))
        ]
        if left:
            gc.collect()  # loaders end their workers then
            time.sleep(0.05)
    for child in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    assert not left, f"processes that the test left: {[commands[child] for child in left]}"
