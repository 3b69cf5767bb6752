"""The simulator's poptorch: names, signatures, defaults, behaviour and errors of PopTorch 3.4."""

from __future__ import annotations

import atexit as _atexit
import faulthandler as _faulthandler
import signal as _signal
import sys as _sys
import typing as _typing

from ipu_simulator import POPTORCH_VERSION as _POPTORCH_VERSION
from ipu_simulator import variables as _variables
from ipu_simulator.environment import announce as _announce
from ipu_simulator.environment import check_variables as _check_variables
from ipu_simulator.host import refuse_to_replace_another_poptorch as _refuse_to_replace

from . import (
    _args_parser,
    _impl,
    _logging,
    dataloader,
    enums,
    executor,
    ops,
    optim,
    options,
    poptorch_core,
    profiling,
    testing,
    tools,
)
from ._logging import setLogLevel
from ._options.known import validate as _validate_options
from ._run.compilation import registerPostCompileHook, registerPreCompileHook
from ._run.device_weights import replica_grouping as _replica_grouping
from ._run.host_weights import check_backward as _check_backward
from ._run.host_weights import is_wrapped as _is_wrapped
from ._run.structure import ICustomArgParser, registerCustomArgParser, registerGeometricCustomArgParsers
from ._trace.patches import install as _change_torch
from ._trace.run import isRunningOnIpu
from .accessor import AsynchronousDataAccessor
from .dataloader import DataLoader, _SubDataset
from .enums import *
from .executor import PoplarExecutor
from .models import importPoptorchMetadataFromFile, inferenceModel, load, trainingModel
from .ops import *
from .ops_registered import register as _register_operators
from .options import *
from .poptorch_core import Error, RecoverableError, UnrecoverableError, createPoptorchError
from .tools import (
    accessAttributes,
    flattenTensorStructure,
    getIpuTensorId,
    ipuHardwareIsAvailable,
    ipuHardwareVersion,
    module_repr,
    poptorchAtExit,
    print,
    reconstructTensorStructure,
)

__version__ = _POPTORCH_VERSION

# `from poptorch import *` gives PopTorch's names. Modules that PopTorch doesn't have would replace names of
# the program, such as torchvision's `models`.
_OUR_MODULES = frozenset(
    "accessor blocks dataloader executor models tools "
    "ops_control ops_custom ops_points ops_registered".split()
)
__all__ = [name for name in dict(globals()) if not name.startswith("_") and name not in _OUR_MODULES]
__all__.remove("annotations")

# Aliases of PopTorch's private modules that libraries and PopTorch's tests import.
_dataloader, _poplar_executor, _utils = dataloader, executor, tools
for _module in ("_dataloader", "_poplar_executor", "_utils"):
    _sys.modules[f"{__name__}.{_module}"] = globals()[_module]


poptorch_core._validateOptions = _validate_options
poptorch_core.isCompilingWithDispatcher = isRunningOnIpu


def _has_file(stream: _typing.TextIO | None) -> bool:
    """Whether faulthandler can write to a stream: it may be None (closed), or have no file (notebooks)."""
    try:
        return stream is not None and stream.fileno() >= 0
    except (OSError, ValueError, AttributeError):
        return False


def _prepare_process() -> None:
    """The side effects of importing PopTorch: environment, logging, faulthandler, atexit, monkeypatches.

    Raises BadVariables for environment variables that the simulator can't use.
    """
    _refuse_to_replace()
    _check_variables()
    _announce()
    # RDMA with fork() is unsafe unless this is set first.
    if not _variables.is_set("RDMAV_FORK_SAFE"):
        _variables.set_for_children("RDMAV_FORK_SAFE", "1")
    _logging.install()
    if _has_file(_sys.stderr):
        _faulthandler.enable()
        if hasattr(_faulthandler, "register"):  # not on Windows
            _faulthandler.register(_signal.SIGTERM, chain=True)
    _atexit.register(poptorchAtExit)
    _change_torch(_is_wrapped, _check_backward, _replica_grouping)
    _register_operators()


_prepare_process()
