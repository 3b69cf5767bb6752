"""A stand-in for Graphcore's PopTorch 3.4 whose device computes nothing, for tests of `--device ipu`.

It has the names that this application may use, with PopTorch's signatures (as in
`tests/poptorch/poptorch_api.json`), makes the checks of PopTorch's Python layer, and records each call of the
compiled core (`poptorch_core.py`) in the file that STAND_IN_LOG names, one JSON object a line. It follows
PopTorch's published contract, not the simulator, and nothing that is shipped imports it.
"""

# ruff: noqa: F401
import os

os.environ.setdefault("RDMAV_FORK_SAFE", "1")

from . import optim, poptorch_core
from .data import DataLoader
from .executor import PoplarExecutor, inferenceModel, trainingModel
from .ops import (
    BeginBlock,
    identity_loss,
    isRunningOnIpu,
    recomputationCheckpoint,
    removeBlocks,
    serializedMatMul,
)
from .options import (
    AutoStage,
    ConnectionType,
    DataLoaderMode,
    MatMulSerializationMode,
    Options,
    OutputMode,
    PipelinedExecution,
    ReductionType,
    TensorLocationSettings,
)
from .poptorch_core import Error, RecoverableError, UnrecoverableError

__version__ = "3.4.0"


def ipuHardwareIsAvailable(num_ipus=1):
    return num_ipus <= int(os.environ.get("STAND_IN_IPUS", "64"))
