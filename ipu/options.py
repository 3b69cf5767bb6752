"""The configuration as `poptorch.Options`, for training and for evaluation.

The settings are those of Graphcore's PyTorch BERT recipes (SDK 3.4); comments say what each does to memory
and time. The simulator accepts all of them; those for the IPU compiler have no effect there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch

import ipu

from . import device
from .instances import ALONE, Instances
from .keys import REQUIRED, BatchKeys, DeviceKeys
from .placement import Head, device_ipus, pipeline_stages

# Graphcore's recipes always set both. The autoloader spreads the loading of code over tiles; replicas that
# synchronise independently don't wait for each other during transfers to and from the host.
_ENGINE_OPTIONS = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}
# Embedding and vocabulary projection are tied: the gather reads the weight in the matmul's layout and adds
# its gradient to the projection's accumulator, which saves a second copy of the table and of its gradient.
# The third keeps residual additions in place where the schedule would copy them.
_PATTERNS = {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True}


@dataclass(frozen=True)
class DevicePlan(DeviceKeys, BatchKeys):
    """The keys of device and batch, and what else the device needs of a run."""

    head: Head = REQUIRED
    seed: int = REQUIRED
    auto_loss_scaling: bool = REQUIRED


def training_options(plan: DevicePlan, instances: Instances = ALONE) -> Any:
    """Options of the training executor; outputs are summed over micro batches, per replica.

    With several instances, each has its share of the replicas.
    """
    poptorch = ipu.poptorch
    options = _common(plan, instances)
    options.Precision.enableStochasticRounding(plan.stochastic_rounding)
    options.deviceIterations(plan.device_iterations)
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
    # Gradient accumulators stay on the device: the host doesn't read them.
    options._Popart.set("disableGradAccumulationTensorStreams", True)
    # Frees activations early: consumers of gradients that no weight update waits for run first.
    options._Popart.set("scheduleNonWeightUpdateGradientConsumersEarly", True)
    # Orders an IPU's weight updates so that they overlap least in memory. The scheduler orders IPU 0's, where
    # the tied embedding has one update for two gradients.
    schedule = device.popart().AccumulateOuterFragmentSchedule.OverlapMemoryOptimized
    options._Popart.set("accumulateOuterFragmentSettings.schedule", int(schedule))
    options._Popart.set("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"])
    # Copies each input of an outlined subgraph when it is needed, not all of them at the start.
    options._Popart.set("subgraphCopyingStrategy", int(device.popart().SubgraphCopyingStrategy.JustInTime))
    options._Popart.setPatterns(dict(_PATTERNS))
    return options


def inference_options(plan: DevicePlan, instances: Instances = ALONE) -> Any:
    """Options of the evaluation executor: as many replicas; returns the outputs of every micro batch.

    A pipeline needs at least as many device iterations as stages. It rounds to nearest, so that two
    evaluations of the same weights agree.
    """
    options = _common(plan, instances)
    options.Precision.enableStochasticRounding(False)
    options.deviceIterations(pipeline_stages(plan.layers_per_ipu, plan.head))
    options.outputMode(ipu.poptorch.OutputMode.All)
    return options


def _common(plan: DevicePlan, instances: Instances) -> Any:
    poptorch = ipu.poptorch
    if instances.from_poprun:
        # All programs of an instance must have the same popdist options.
        options = device.popdist_options(plan.ipus_per_replica)
    else:
        options = poptorch.Options()
        options.replicationFactor(plan.replication_factor // instances.count)
        if instances.count > 1:
            options.Distributed.configureProcessId(instances.index, instances.count)
    options.autoRoundNumIPUs(True)
    # The device's seed. It also seeds torch's global generator on the host, which this program doesn't use.
    options.randomSeed(plan.seed)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    layers = plan.layers_per_ipu
    indices = list(range(len(layers))) if device.is_simulator() else device_ipus(layers)
    options.setAvailableMemoryProportion(
        {f"IPU{index}": share for index, share in zip(indices, plan.matmul_proportion)}
    )
    options.Precision.enableFloatingPointExceptions(plan.floating_point_exceptions)
    options.Precision.setPartialsType(torch.float16 if plan.enable_half_partials else torch.float32)
    # In one call: a second call would replace the options of the first.
    options._Popart.setEngineOptions(_engine_options(plan.profile_folder))
    if plan.executable_cache is not None:
        options.enableExecutableCaching(plan.executable_cache)
    if plan.synthetic_data:
        options.enableSyntheticData(True)
    if plan.compile_only:
        options.useOfflineIpuTarget()
    return options


def _engine_options(profile_folder: Optional[str]) -> Dict[str, str]:
    if profile_folder is None:
        return dict(_ENGINE_OPTIONS)
    return {
        **_ENGINE_OPTIONS,
        "autoReport.all": "true",
        "autoReport.directory": profile_folder,
        # A report is most useful for a program that runs out of memory: write it for those too.
        "debug.allowOutOfMemory": "true",
    }
