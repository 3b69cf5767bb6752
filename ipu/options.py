"""The configuration as `poptorch.Options`, for training and for evaluation.

The settings are those of Graphcore's PyTorch BERT recipes (SDK 3.4); what each does to memory and time is
said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import torch

import ipu

from .placement import pipeline_stages


@dataclass(frozen=True)
class DevicePlan:
    """The configuration's keys that the device needs."""

    task: str
    seed: int
    gradient_accumulation: int
    replication_factor: int
    device_iterations: int
    reduction: str
    layers_per_ipu: Tuple[int, ...]
    matmul_proportion: Tuple[float, ...]
    optimizer_state: str
    replicated_tensor_sharding: bool
    enable_half_partials: bool
    stochastic_rounding: bool
    auto_loss_scaling: bool
    executable_cache: Optional[str]


def training_options(plan: DevicePlan) -> Any:
    """Options of the training executor; outputs are summed over micro batches, per replica."""
    poptorch = ipu.poptorch
    options = _common(plan)
    options.deviceIterations(plan.device_iterations)
    options.replicationFactor(plan.replication_factor)
    options.outputMode(poptorch.OutputMode.Sum)
    options.Training.gradientAccumulation(plan.gradient_accumulation)
    reductions = {"mean": poptorch.ReductionType.Mean, "sum": poptorch.ReductionType.Sum}
    options.Training.accumulationAndReplicationReductionType(reductions[plan.reduction])
    if plan.auto_loss_scaling:
        options.Training.setAutomaticLossScaling(True)
    options.TensorLocations.setOptimizerLocation(
        poptorch.TensorLocationSettings()
        .useOnChipStorage(plan.optimizer_state == "on_chip")
        .useReplicatedTensorSharding(plan.replicated_tensor_sharding)
    )
    # Gradient accumulators stay on the device: nobody reads them on the host.
    options._Popart.set("disableGradAccumulationTensorStreams", True)
    # Frees the activations of gradients that no weight update waits for.
    options._Popart.set("scheduleNonWeightUpdateGradientConsumersEarly", True)
    return options


def inference_options(plan: DevicePlan) -> Any:
    """Options of the evaluation executor: one replica, every micro batch's outputs come back.

    A pipeline needs at least as many device iterations as stages.
    """
    options = _common(plan)
    options.deviceIterations(pipeline_stages(plan.layers_per_ipu, plan.task))
    options.outputMode(ipu.poptorch.OutputMode.All)
    return options


def _common(plan: DevicePlan) -> Any:
    poptorch = ipu.poptorch
    options = poptorch.Options()
    options.autoRoundNumIPUs(True)
    # Only the seed of the device: setting it also seeds torch on the host, which no draw of ours uses.
    options.randomSeed(plan.seed)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.setAvailableMemoryProportion(
        {f"IPU{index}": share for index, share in enumerate(plan.matmul_proportion)}
    )
    options.Precision.enableStochasticRounding(plan.stochastic_rounding)
    if plan.enable_half_partials:
        options.Precision.setPartialsType(torch.float16)
    if plan.executable_cache is not None:
        options.enableExecutableCaching(plan.executable_cache)
    return options
