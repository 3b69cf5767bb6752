"""Executes training steps: what a device computes, none of what it costs.

Knows tensors and callables only. Two ways to compute: in float32, where float16 is PyTorch's and all sums and
moments are float32; or as an IPU, with `Float16Arithmetic` around the model, `TypedAccumulators` for its
gradients and a `StateRounding` in the updater.
"""

from .dtypes import device_dtype, to_device_dtype
from .float16 import Arithmetic, Float16Arithmetic
from .float32 import FloatingPointExceptions
from .gradients import AccumulatorSettings, BackwardSums, Reduction, TypedAccumulators
from .loss_scaling import AutomaticLossScale
from .outputs import OutputCollector, Returned
from .plan import MicroBatch, StepPlan
from .processes import Processes
from .randomness import KeyedRandomness, host_generator_kept
from .rounding import FloatingPointException
from .step import Program, run_inference, run_training
from .stochastic import StateRounding
from .update_rules import GroupSettings
from .updater import OptimizerSettings, Rule, Updater

__all__ = [
    "AccumulatorSettings",
    "Arithmetic",
    "AutomaticLossScale",
    "BackwardSums",
    "Float16Arithmetic",
    "FloatingPointException",
    "FloatingPointExceptions",
    "GroupSettings",
    "KeyedRandomness",
    "MicroBatch",
    "OptimizerSettings",
    "OutputCollector",
    "Processes",
    "Program",
    "Reduction",
    "Returned",
    "Rule",
    "StateRounding",
    "StepPlan",
    "TypedAccumulators",
    "Updater",
    "device_dtype",
    "host_generator_kept",
    "run_inference",
    "run_training",
    "to_device_dtype",
]
