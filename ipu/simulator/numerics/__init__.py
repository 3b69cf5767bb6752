"""Executes training steps: what a device computes, none of what it costs.

Knows tensors and callables only. Not covered: float16 arithmetic and stochastic rounding (float16
weights keep their dtype, all sums and moments are float32).
"""

from .dtypes import device_dtype, to_device_dtype
from .outputs import OutputCollector, Returned
from .plan import MicroBatch, StepPlan
from .processes import Processes
from .randomness import KeyedRandomness, host_generator_kept
from .step import Program, run_inference, run_training
from .update_rules import GroupSettings
from .updater import OptimizerSettings, Rule, Updater

__all__ = [
    "GroupSettings",
    "KeyedRandomness",
    "MicroBatch",
    "OptimizerSettings",
    "OutputCollector",
    "Processes",
    "Program",
    "Returned",
    "Rule",
    "StepPlan",
    "Updater",
    "device_dtype",
    "host_generator_kept",
    "run_inference",
    "run_training",
    "to_device_dtype",
]
