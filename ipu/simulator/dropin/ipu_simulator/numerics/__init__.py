"""Executes training steps: what a device computes, none of what it costs.

Knows tensors and callables only. Two ways to compute: in float32, where float16 is PyTorch's and all sums and
moments are float32; or as an IPU, with `Float16Arithmetic` around the model, `TypedAccumulators` for its
gradients and a `StateRounding` in the updater.
"""

from .float16 import Arithmetic, Float16Arithmetic, FloatingPointExceptions
from .gradients import (
    AccumulatorSettings,
    AutomaticLossScale,
    BackwardSums,
    Processes,
    Reduction,
    TypedAccumulators,
)
from .plan import MicroBatch, OutputCollector, Returned, StepPlan, device_dtype, to_device_dtype
from .rounding import FloatingPointException, KeyedRandomness, StateRounding, host_generator_kept
from .step import Program, run_inference, run_training
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
