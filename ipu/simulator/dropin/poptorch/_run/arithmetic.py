"""Translates options and environment into the engine's arithmetic: precision, rounding, reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ipu_simulator import environment, numerics
from ipu_simulator.numerics import onednn

from .. import enums
from .._options.popart import Obeyed
from ..poptorch_core import createPoptorchError

if TYPE_CHECKING:
    from ..options import Options

_MEANS = {
    enums.MeanReductionStrategy.Post: numerics.Reduction.MEAN_POST,
    enums.MeanReductionStrategy.PostAndLoss: numerics.Reduction.MEAN_POST_AND_LOSS,
    enums.MeanReductionStrategy.Running: numerics.Reduction.MEAN_RUNNING,
}


def computes_as_ipu() -> bool:
    """Whether float16 has an IPU's numerics: ipu-float16 or ipu-float16-fast.

    Raises poptorch.Error for an unknown precision.
    """
    return _precision() in (environment.IPU_FLOAT16, environment.IPU_FLOAT16_FAST)


def computes_in_bfloat16() -> bool:
    """Whether products are in bfloat16. Raises poptorch.Error for an unknown precision."""
    return _precision() == environment.BFLOAT16


def multiplies_by_onednn() -> bool:
    """Whether float32 products are oneDNN's. Raises poptorch.Error for an unknown precision, and if this
    PyTorch lacks oneDNN's products."""
    if _precision() != environment.FLOAT32_ONEDNN:
        return False
    if not onednn.is_available():
        raise createPoptorchError(
            f"the precision {environment.FLOAT32_ONEDNN} needs a PyTorch with oneDNN's products, which torch "
            f"{torch.__version__} lacks: choose {environment.FLOAT32}"
        )
    return True


def _precision() -> str:
    try:
        return environment.precision()
    except environment.UnknownPrecision as problem:
        raise createPoptorchError(str(problem)) from problem


def arithmetic(options: Options) -> numerics.Float16Arithmetic | numerics.Float16InFloat32:
    """float16 arithmetic; as an IPU's with the options' partials types and floating-point exceptions."""
    if not computes_as_ipu():
        return numerics.Float16InFloat32()
    popart = Obeyed(options._Popart)
    return numerics.Float16Arithmetic(
        numerics.Arithmetic(
            half_matmul_partials=popart.half_matmul_partials,
            half_convolution_partials=popart.half_convolution_partials,
            exceptions=popart.stops_at_exceptions,
            fast=_precision() == environment.IPU_FLOAT16_FAST,
        )
    )


def exceptions(options: Options) -> numerics.FloatingPointExceptions | None:
    """The dispatch mode that raises floating-point exceptions; None if the options don't enable them."""
    return numerics.FloatingPointExceptions() if Obeyed(options._Popart).stops_at_exceptions else None


def state_rounding(options: Options, randomness: numerics.KeyedRandomness) -> numerics.StateRounding:
    """Rounding of the training state: stochastic if the options enable it, otherwise to nearest."""
    popart = Obeyed(options._Popart)
    return numerics.StateRounding(
        randomness, by_chance=popart.rounds_by_chance, stops=popart.stops_at_exceptions
    )


def reduction(options: Options) -> numerics.Reduction:
    """How gradients are reduced over accumulation and replicas."""
    training = options.Training
    if training.accumulation_and_replication_reduction_type == enums.ReductionType.Sum:
        return numerics.Reduction.SUM
    return _MEANS[training.meanAccumulationAndReplicationReductionStrategy]
