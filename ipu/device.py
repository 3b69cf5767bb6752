"""Device selection, once per process.

There is no silent fallback: a requested device that isn't available raises DeviceError, and the banner of
`auto` says which device was chosen and why.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Optional

DEVICES = ("auto", "ipu", "ipu-model", "simulator")

DROP_IN = Path(__file__).resolve().parent / "simulator" / "dropin"

_REMEDY = (
    "Source the enable scripts of Graphcore's SDK and install the PopTorch wheel that comes with it "
    "(source poplar-*/enable.sh && source popart-*/enable.sh && pip install poptorch-*.whl), "
    "or use --device simulator, which needs no SDK"
)

# Everything outside the simulator runs on Python 3.8, the version of IPU hosts.
_SIMULATORS_PYTHON = (3, 10)
_WHOSE = "the simulator's poptorch, PopTorch 3.4 semantics; no SDK in use"
_OFFLINE = "compile only, which needs no IPU"
# Device sizes that PopTorch can attach to. A partition of a POD may offer all its IPUs as one device only.
_DEVICE_SIZES = (1, 2, 4, 8, 16, 32, 64)


class DeviceError(ValueError):
    """The requested device isn't available."""


@dataclass(frozen=True)
class DeviceChoice:
    """The device in use: its name, its PopTorch and that version, why it was chosen, and a note on the
    simulator's arithmetic.
    """

    name: str
    implementation: str
    version: str
    reason: str
    arithmetic: str = ""

    def banner(self) -> str:
        """One line for the log."""
        chosen = f"device: {self.name} ({self.implementation}, poptorch {self.version})"
        return f"{chosen}; {self.reason}{self.arithmetic}"


_asked: Optional[str] = None
_chosen: Optional[DeviceChoice] = None
_module: Optional[ModuleType] = None


def select_device(
    name: str, *, offline: bool = False, target: Optional[str] = None, precision: Optional[str] = None
) -> DeviceChoice:
    """Chooses one of DEVICES for this process and imports its PopTorch.

    `offline`: only compile, which needs no IPU. `target`: the machine to simulate. `precision`: the
    simulator's arithmetic: float32, float32-onednn, bfloat16, ipu-float16 or ipu-float16-fast.

    Raises DeviceError for an unknown name, an unavailable device, and a second, different choice.
    """
    global _asked, _chosen, _module
    if name not in DEVICES:
        raise DeviceError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}")
    if _chosen is not None:
        # The device that `auto` chose may be requested by its name.
        if name not in (_asked, _chosen.name):
            raise DeviceError(
                f"device {name!r} was requested, but this process already uses {_chosen.name!r}: "
                "choose the device once, before the first use of ipu.poptorch"
            )
        if _chosen.name == "simulator":
            _chosen = replace(_chosen, arithmetic=_set_up_simulator(target, precision))
        return _chosen
    if name == "auto":
        _module, _chosen = _first_that_answers(offline, target, precision)
    elif name == "simulator":
        _module, _chosen = _simulator("requested", target, precision)
    else:
        _module, _chosen = _graphcore(name, offline)
    _asked = name
    return _chosen


def make_simulator_importable() -> None:
    """Appends the drop-in's folder to sys.path: `ipu_simulator` becomes importable, and an installed PopTorch
    still takes precedence as `poptorch`.

    Raises DeviceError if Python is too old for the simulator.
    """
    _check_python("the cost model is part of it")
    _use_this_copy()
    if not any(_is_drop_in_folder(folder) for folder in sys.path):
        sys.path.append(str(DROP_IN))


def choose_waiting() -> None:
    """Lets PyTorch's threads sleep while they wait for each other if the machine is busy.

    Call it before torch is imported (ipu_simulator/host_threads.py). No effect on Python 3.8, where IPUs
    compute.
    """
    if sys.version_info >= _SIMULATORS_PYTHON:
        make_simulator_importable()
        from ipu_simulator import host_threads

        host_threads.choose_waiting()


def waiting_note() -> str:
    """What is to be said of the simulator's threads after their number."""
    from ipu_simulator import host_threads

    note = host_threads.waiting_note()
    return note and f", which {note}"


def fastest_precision() -> Literal["float32", "bfloat16"]:
    """The simulator's fastest arithmetic on this CPU."""
    return "float32" if bfloat16_instructions() is None else "bfloat16"


def bfloat16_instructions() -> Optional[str]:
    """The instructions for products in bfloat16 that this CPU has; None without any.

    None too where the simulator doesn't run, on Python 3.8.
    """
    if sys.version_info < _SIMULATORS_PYTHON:
        return None
    make_simulator_importable()
    from ipu_simulator import host

    return host.bfloat16_instructions()


def is_simulator() -> bool:
    """True if this process uses the simulator's PopTorch."""
    return _chosen is not None and _chosen.name == "simulator"


def resolve() -> ModuleType:
    """The PopTorch of the device in use; `auto` if none was chosen."""
    if _module is None:
        select_device("auto")
    assert _module is not None
    return _module


def _first_that_answers(
    offline: bool, target: Optional[str], precision: Optional[str]
) -> tuple[ModuleType, DeviceChoice]:
    already = sys.modules.get("poptorch")
    if already is not None and _is_drop_in(already):
        return _simulator("the simulator's poptorch is already imported", target, precision)
    if already is None and _started_on_drop_in():
        return _simulator("the program was started on the simulator's poptorch", target, precision)
    try:
        module = _import_graphcore()
    except ModuleNotFoundError as error:
        if error.name != "poptorch":
            return _simulator(f"PopTorch can't be imported: {error}", target, precision)
        return _simulator("this CPU computes as IPUs would (PopTorch isn't installed)", target, precision)
    except ImportError as error:
        return _simulator(f"PopTorch can't be imported: {error}", target, precision)
    if _an_ipu_answers(module):
        return module, _graphcore_choice(module, "ipu", "an IPU is available")
    if offline:
        return module, _graphcore_choice(module, "ipu", _OFFLINE)
    # A process can't hold two packages named poptorch: unload the one that was only probed.
    if already is not None:
        raise DeviceError(
            "no IPU is available, and Graphcore's poptorch was imported before the device was chosen, so the "
            "simulator's can't be imported: choose the device first, or use --device ipu-model"
        )
    _forget("poptorch")
    return _simulator("PopTorch is installed, but no IPU is available", target, precision)


def _simulator(
    reason: str, target: Optional[str], precision: Optional[str]
) -> tuple[ModuleType, DeviceChoice]:
    _check_python(reason)
    _use_this_copy()
    if "poptorch" not in sys.modules and not _is_drop_in_folder(sys.path[0]):
        sys.path.insert(0, str(DROP_IN))
    module = sys.modules.get("poptorch") or _import_simulator(target, precision)
    if not _is_drop_in(module):
        raise DeviceError(
            f"the simulator was requested, but another poptorch is already imported, from {module.__file__}: "
            "choose the device before anything imports poptorch"
        )
    arithmetic = _set_up_simulator(target, precision)
    return module, DeviceChoice("simulator", _WHOSE, module.__version__, reason, arithmetic)


def simulator_choice() -> DeviceChoice:
    """As select_device("simulator"), for a process that may not need the simulator's PopTorch: it isn't
    imported yet.

    Raises DeviceError, also for an environment variable with a bad value.
    """
    if _chosen is not None or "poptorch" in sys.modules:
        return select_device("simulator")
    make_simulator_importable()
    from ipu_simulator import POPTORCH_VERSION, environment

    environment.set_announced()
    try:
        environment.check_variables()
    except environment.BadVariables as error:
        raise DeviceError(str(error)) from error
    return DeviceChoice("simulator", _WHOSE, POPTORCH_VERSION, "requested", environment.arithmetic_note())


def _import_simulator(target: Optional[str], precision: Optional[str]) -> ModuleType:
    from ipu_simulator import environment

    environment.set_announced()  # by the device's banner
    # First, so that the variables that these replace may have any value.
    environment.stand_for(target=target, precision=precision)
    try:
        return _import_poptorch()
    except environment.BadVariables as error:
        raise DeviceError(str(error)) from error


def _set_up_simulator(target: Optional[str], precision: Optional[str]) -> str:
    """Returns what a banner says about the arithmetic."""
    from ipu_simulator import environment  # needs Python 3.10

    environment.stand_for(target=target, precision=precision)
    return environment.arithmetic_note()


def _check_python(reason: str) -> None:
    if sys.version_info < _SIMULATORS_PYTHON:
        wanted, found = (
            ".".join(map(str, version[:2])) for version in (_SIMULATORS_PYTHON, sys.version_info)
        )
        raise DeviceError(
            f"the simulator needs Python {wanted} or newer, but this is {found} ({reason}): start the "
            "program with Python 3.11 (pip install -r requirements.txt there), or on IPUs with --device ipu"
        )


def _graphcore(name: str, offline: bool) -> tuple[ModuleType, DeviceChoice]:
    already = sys.modules.get("poptorch")
    if already is not None and _is_drop_in(already):
        raise DeviceError(
            f"device {name!r} was requested, but the simulator's poptorch is already imported: "
            "choose the device before anything imports poptorch"
        )
    previous = os.environ.get("POPTORCH_IPU_MODEL")
    if name == "ipu-model":
        os.environ["POPTORCH_IPU_MODEL"] = "1"
    try:
        module = _import_graphcore()
    except ImportError as error:
        if previous is None:
            os.environ.pop("POPTORCH_IPU_MODEL", None)
        else:
            os.environ["POPTORCH_IPU_MODEL"] = previous
        raise DeviceError(
            f"device {name!r} needs Graphcore's PopTorch, which can't be imported ({error}). {_REMEDY}"
        ) from error
    if name == "ipu-model":
        return module, _graphcore_choice(module, name, "requested")
    if offline:
        return module, _graphcore_choice(module, "ipu", _OFFLINE)
    if not _an_ipu_answers(module):
        raise DeviceError(
            f"device 'ipu' was requested and PopTorch {_version(module)} is installed, but no IPU is "
            "available. Check gc-info -l and IPUOF_VIPU_API_PARTITION_ID, or use --device ipu-model or "
            "--device simulator"
        )
    return module, _graphcore_choice(module, name, "requested")


def _an_ipu_answers(module: ModuleType) -> bool:
    return any(module.ipuHardwareIsAvailable(size) for size in _DEVICE_SIZES)


def _graphcore_choice(module: ModuleType, name: str, reason: str) -> DeviceChoice:
    return DeviceChoice(name, "Graphcore's PopTorch", _version(module), reason)


def popdist() -> ModuleType:
    """The popdist that belongs to the device's PopTorch."""
    return importlib.import_module("popdist")


def popdist_options(ipus_per_replica: int) -> Any:
    """Options for this instance: its share of PopRun's replicas, their index among all, and its IPUs."""
    return importlib.import_module("popdist.poptorch").Options(ipus_per_replica=ipus_per_replica)


def popart() -> ModuleType:
    """The popart that belongs to the device's PopTorch."""
    return importlib.import_module("popart")


def _import_graphcore() -> ModuleType:
    """Imports poptorch from anywhere except the drop-in."""
    path = list(sys.path)
    sys.path[:] = [folder for folder in path if not _is_drop_in_folder(folder)]
    try:
        return _import_poptorch()
    finally:
        sys.path[:] = path


def _import_poptorch() -> ModuleType:
    """Imports it and leaves SIGTERM as it was: PopTorch registers faulthandler there, which writes the stacks
    of all threads into the log of a run that is only asked to stop."""
    module = importlib.import_module("poptorch")
    if hasattr(faulthandler, "unregister"):  # not on Windows
        faulthandler.unregister(signal.SIGTERM)
    return module


def _started_on_drop_in() -> bool:
    """True if the simulator precedes installed packages on sys.path, put there by its command or the user.

    An installed simulator comes after them, so it doesn't count as a request.
    """
    for folder in sys.path:
        if _is_drop_in_folder(folder):
            return True
        if Path(folder).name in ("site-packages", "dist-packages"):
            return False
    return False


def _use_this_copy() -> None:
    """Replaces an installed simulator on sys.path by this repository's: a process has one engine."""
    if "ipu_simulator" not in sys.modules:
        sys.path[:] = [str(DROP_IN) if _is_drop_in_folder(folder) else folder for folder in sys.path]


def _is_drop_in_folder(folder: str) -> bool:
    """True if a folder has the simulator's poptorch: this repository's, or an installed copy."""
    return (Path(folder or ".") / "ipu_simulator").is_dir()


def _is_drop_in(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and _is_drop_in_folder(str(Path(file).parents[1]))


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]


def _version(module: ModuleType) -> str:
    return str(getattr(module, "__version__", "unknown"))
