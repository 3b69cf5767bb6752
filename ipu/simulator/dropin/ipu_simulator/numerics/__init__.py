"""Executes training steps: the results that a device computes, not their cost.

Works on tensors and callables only. There are three arithmetics: float32, in which float16 is PyTorch's
(`Float16InFloat32` around the model) and all sums and moments are float32, with the products of PyTorch's
BLAS or oneDNN's (`onednn`); the same with products in bfloat16 (`bfloat16`); and an IPU's, with
`Float16Arithmetic` around the model, `TypedAccumulators` for its gradients and a `StateRounding` in the
updater.
"""

from .bfloat16 import WeightCopies
from .float16 import Arithmetic, Float16Arithmetic
from .float16_kernels import Float16InFloat32
from .float16_products import FloatingPointExceptions
from .gradients import (
    AccumulatorSettings,
    AutomaticLossScale,
    BackwardSums,
    Reduction,
    TypedAccumulators,
    Watch,
)
from .nested import OperationMode
from .plan import MicroBatch, OutputCollector, Returned, StepPlan
from .processes import Processes
from .rounding import (
    FloatingPointException,
    InvalidOperation,
    KeyedRandomness,
    StateRounding,
    device_dtype,
    host_generator_kept,
    to_device_dtype,
)
from .saved_tensors import SavedTensors, storage_of
from .step import Merge, Results, StepProgram, run_inference, run_training
from .update_rules import GroupSettings
from .updater import Rule, Updater, UpdateSettings, state_names

__all__ = [
    "AccumulatorSettings",
    "Arithmetic",
    "AutomaticLossScale",
    "BackwardSums",
    "Float16Arithmetic",
    "Float16InFloat32",
    "FloatingPointException",
    "FloatingPointExceptions",
    "GroupSettings",
    "InvalidOperation",
    "KeyedRandomness",
    "Merge",
    "MicroBatch",
    "OperationMode",
    "OutputCollector",
    "Processes",
    "Reduction",
    "Results",
    "Returned",
    "Rule",
    "SavedTensors",
    "StateRounding",
    "StepPlan",
    "StepProgram",
    "TypedAccumulators",
    "UpdateSettings",
    "Updater",
    "Watch",
    "WeightCopies",
    "device_dtype",
    "host_generator_kept",
    "run_inference",
    "run_training",
    "state_names",
    "storage_of",
    "to_device_dtype",
]
