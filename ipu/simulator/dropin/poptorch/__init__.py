"""PopTorch's interface on the simulator: names, signatures, defaults, behaviour and errors of PopTorch
3.4.
"""

from __future__ import annotations

import atexit as _atexit
import contextlib as _contextlib
import faulthandler as _faulthandler
import os as _os
import signal as _signal

from ipu_simulator import POPTORCH_VERSION as _POPTORCH_VERSION
from ipu_simulator.announcement import announce as _announce

from . import _logging, _utils, enums, ops, optim, options, poptorch_core, profiling, testing
from ._accessor import AsynchronousDataAccessor
from ._custom_args import ICustomArgParser, registerCustomArgParser
from ._dataloader import DataLoader, _SubDataset
from ._entry import inferenceModel, trainingModel
from ._files import importPoptorchMetadataFromFile, load
from ._geometric import registerGeometricCustomArgParsers
from ._hardware import ipuHardwareIsAvailable, ipuHardwareVersion
from ._impl import registerPostCompileHook, registerPreCompileHook
from ._logging import setLogLevel
from ._poplar_executor import PoplarExecutor
from ._trace import isRunningOnIpu
from ._utils import (
    accessAttributes,
    flattenTensorStructure,
    getIpuTensorId,
    module_repr,
    poptorchAtExit,
    print,
    reconstructTensorStructure,
)
from .enums import *
from .ops import *
from .options import *
from .poptorch_core import Error, RecoverableError, UnrecoverableError, createPoptorchError

__version__ = _POPTORCH_VERSION


def _prepare_process() -> None:
    """What importing PopTorch does to a process besides defining names."""
    _announce()
    # RDMA and fork() together are unsafe unless this is set first.
    _os.environ.setdefault("RDMAV_FORK_SAFE", "1")
    _logging.install()
    # A replaced stderr (a notebook's, a test's) may have no file for faulthandler to write to.
    with _contextlib.suppress(OSError, ValueError, AttributeError):
        _faulthandler.enable()
        _faulthandler.register(_signal.SIGTERM, chain=True)
    _atexit.register(poptorchAtExit)


_prepare_process()
