"""The choice of the device, made once in a process.

Nothing falls back in silence: a device that was asked for and can't be had is a DeviceError, and `auto` says
in its banner what it took and why.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

DEVICES = ("auto", "ipu", "ipu-model", "simulator")

DROP_IN = Path(__file__).resolve().parent / "simulator" / "dropin"

_REMEDY = (
    "Source the enable scripts of Graphcore's SDK and install the PopTorch wheel that comes with it "
    "(source poplar-*/enable.sh && source popart-*/enable.sh && pip install poptorch-*.whl), "
    "or use --device simulator, which needs no SDK"
)

# All else runs on an IPU host's Python 3.8.
_SIMULATORS_PYTHON = (3, 10)
_OFFLINE = "asked to compile, which needs no IPU"
# The sizes of device that PopTorch can take: a partition of a POD may offer its IPUs as one device only.
_DEVICE_SIZES = (1, 2, 4, 8, 16, 32, 64)


class DeviceError(ValueError):
    """The device asked for can't be had."""


@dataclass(frozen=True)
class DeviceChoice:
    """The device in use: its name, whose PopTorch, of which version, and why this one."""

    name: str
    implementation: str
    version: str
    reason: str

    def banner(self) -> str:
        """One line for the log."""
        return f"device: {self.name} ({self.implementation}, poptorch {self.version}); {self.reason}"


_asked: Optional[str] = None
_chosen: Optional[DeviceChoice] = None
_module: Optional[ModuleType] = None


def select_device(
    name: str, *, offline: bool = False, target: Optional[str] = None, precision: Optional[str] = None
) -> DeviceChoice:
    """Chooses one of DEVICES for this process and imports its PopTorch.

    `offline`: only to compile, for which PopTorch needs no IPU that answers. `target`: the machine that the
    simulator stands for. `precision`: how the simulator computes (float32 or ipu-float16).

    Raises DeviceError for an unknown name, for a device that can't be had, and for a second, different
    choice.
    """
    global _asked, _chosen, _module
    if name not in DEVICES:
        raise DeviceError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}")
    if _chosen is not None:
        # What `auto` found may be asked for by its name.
        if name not in (_asked, _chosen.name):
            raise DeviceError(
                f"device {name!r} was asked for, but this process uses {_chosen.name!r} already: "
                "choose the device once, before the first use of ipu.poptorch"
            )
        _set_up_simulator(target, precision)
        return _chosen
    if name == "auto":
        _module, _chosen = _first_that_answers(offline)
    elif name == "simulator":
        _module, _chosen = _simulator("asked for")
    else:
        _module, _chosen = _graphcore(name, offline)
    _asked = name
    _set_up_simulator(target, precision)
    return _chosen


def _set_up_simulator(target: Optional[str], precision: Optional[str]) -> None:
    if _chosen is not None and _chosen.name == "simulator":
        from ipu_simulator import environment  # newer Pythons only

        environment.stand_for(target=target, precision=precision)


def make_simulator_importable() -> None:
    """Puts the drop-in's folder last on sys.path: `ipu_simulator` is importable from then on, and an
    installed PopTorch keeps its name.

    Raises DeviceError where Python is too old for the simulator.
    """
    _check_python("the cost model is part of it")
    _use_this_copy()
    if not any(_is_drop_in_folder(folder) for folder in sys.path):
        sys.path.append(str(DROP_IN))


def resolve() -> ModuleType:
    """The PopTorch of the device in use; `auto` if none was chosen."""
    if _module is None:
        select_device("auto")
    assert _module is not None
    return _module


def _first_that_answers(offline: bool) -> tuple[ModuleType, DeviceChoice]:
    already = sys.modules.get("poptorch")
    if already is not None and _is_drop_in(already):
        return _simulator("the simulator's poptorch is the one in use already")
    if already is None and _started_on_drop_in():
        return _simulator("the program was started on the simulator's poptorch")
    try:
        module = _import_graphcore()
    except ImportError as error:
        return _simulator(f"PopTorch not importable: {error}")
    if _an_ipu_answers(module):
        return module, _graphcore_choice(module, "ipu", "an IPU answers")
    if offline:
        return module, _graphcore_choice(module, "ipu", _OFFLINE)
    # Two packages of one name don't fit in a process: what was only looked at has to go.
    if already is not None:
        raise DeviceError(
            "no IPU answers, and Graphcore's poptorch was imported before the device was chosen, so the "
            "simulator can't be: choose the device first, or use --device ipu-model"
        )
    _forget("poptorch")
    return _simulator("PopTorch is installed, but no IPU answers")


def _simulator(reason: str) -> tuple[ModuleType, DeviceChoice]:
    _check_python(reason)
    # The device's banner takes the place of the line that the drop-in prints, here and in child processes.
    os.environ["IPU_SIMULATOR_ANNOUNCED"] = "1"
    _use_this_copy()
    if "poptorch" not in sys.modules and not _is_drop_in_folder(sys.path[0]):
        sys.path.insert(0, str(DROP_IN))
    module = importlib.import_module("poptorch")
    if not _is_drop_in(module):
        raise DeviceError(
            f"the simulator was asked for, but another poptorch is imported already, from {module.__file__}: "
            "choose the device before anything imports poptorch"
        )
    whose = "this program's own poptorch, PopTorch 3.4 semantics; no SDK in use"
    return module, DeviceChoice("simulator", whose, module.__version__, reason)


def _check_python(reason: str) -> None:
    if sys.version_info < _SIMULATORS_PYTHON:
        wanted, found = (
            ".".join(map(str, version[:2])) for version in (_SIMULATORS_PYTHON, sys.version_info)
        )
        raise DeviceError(
            f"the simulator needs Python {wanted} or newer, and this is {found} ({reason}): start the "
            "program with a newer one (pip install -r requirements.txt there), or on IPUs with --device ipu"
        )


def _graphcore(name: str, offline: bool) -> tuple[ModuleType, DeviceChoice]:
    already = sys.modules.get("poptorch")
    if already is not None and _is_drop_in(already):
        raise DeviceError(
            f"device {name!r} was asked for, but the simulator's poptorch is imported already: "
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
        return module, _graphcore_choice(module, name, "asked for")
    if offline:
        return module, _graphcore_choice(module, "ipu", _OFFLINE)
    if not _an_ipu_answers(module):
        raise DeviceError(
            f"device 'ipu' was asked for, and PopTorch {_version(module)} is here, but no IPU answers. Check "
            "gc-info -l and IPUOF_VIPU_API_PARTITION_ID, or use --device ipu-model or --device simulator"
        )
    return module, _graphcore_choice(module, name, "asked for")


def _an_ipu_answers(module: ModuleType) -> bool:
    return any(module.ipuHardwareIsAvailable(size) for size in _DEVICE_SIZES)


def _graphcore_choice(module: ModuleType, name: str, reason: str) -> DeviceChoice:
    return DeviceChoice(name, "Graphcore's PopTorch", _version(module), reason)


def popdist() -> ModuleType:
    """The popdist that belongs to the device's PopTorch."""
    return importlib.import_module("popdist")


def popdist_options(ipus_per_replica: int) -> Any:
    """Options with this instance's share of PopRun's replicas, their place among all and its IPUs."""
    return importlib.import_module("popdist.poptorch").Options(ipus_per_replica=ipus_per_replica)


def popart() -> ModuleType:
    """The popart that belongs to the device's PopTorch."""
    return importlib.import_module("popart")


def _import_graphcore() -> ModuleType:
    """Imports poptorch from anywhere but the drop-in."""
    path = list(sys.path)
    sys.path[:] = [folder for folder in path if not _is_drop_in_folder(folder)]
    try:
        return importlib.import_module("poptorch")
    finally:
        sys.path[:] = path


def _started_on_drop_in() -> bool:
    """Whether the simulator comes before installed packages on sys.path, where only its front door and the
    user put it. An installed simulator's folder comes after them, and doesn't say that it is wanted.
    """
    for folder in sys.path:
        if _is_drop_in_folder(folder):
            return True
        if Path(folder).name in ("site-packages", "dist-packages"):
            return False
    return False


def _use_this_copy() -> None:
    """Has sys.path name this repository's simulator instead of an installed one: a process has one engine."""
    if "ipu_simulator" not in sys.modules:
        sys.path[:] = [str(DROP_IN) if _is_drop_in_folder(folder) else folder for folder in sys.path]


def _is_drop_in_folder(folder: str) -> bool:
    """Whether a folder has the simulator's poptorch: this repository's, or an installed copy."""
    return (Path(folder or ".") / "ipu_simulator").is_dir()


def _is_drop_in(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and _is_drop_in_folder(str(Path(file).parents[1]))


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]


def _version(module: ModuleType) -> str:
    return str(getattr(module, "__version__", "unknown"))
