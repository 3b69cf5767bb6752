"""What a program's cost depends on beside its graph, read off its options and its optimizer.

Not covered: weights, accumulators and activations that the options place off the chip (they are costed on
it), input/output tiles, automatic loss scaling's histograms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ipu_simulator import numerics
from ipu_simulator.cost.settings import OptimizerSettings, Settings

from .._options.popart import Obeyed
from ..optim.settings import Extracted, extract
from ..poptorch_core import MAX_IPUS_PER_PROCESS

if TYPE_CHECKING:
    from ..options import Options

# PopTorch: setAvailableMemoryProportion, "default 0.6".
_DEFAULT_PROPORTION = 0.6
# Of gradient accumulators where nothing says otherwise.
_FLOAT32_BYTES = 4
# PopTorch's number of pipelined execution among its execution modes.
_PIPELINED = 0
# PopART's RecomputationType.None.
_NO_RECOMPUTATION = 0

Rule = numerics.Rule
_NAMES = {
    Rule.SGD: "sgd",
    Rule.ADAM: "adam",
    Rule.ADAMW: "adamw",
    Rule.LAMB: "lamb",
    Rule.LAMB_NO_BIAS: "lamb",
    Rule.RMSPROP: "rmsprop",
    Rule.RMSPROP_CENTERED: "rmsprop",
}


def settings_of(
    options: Options,
    optimizer: torch.optim.Optimizer | None,
    micro_batch_size: int,
    num_ipus: int = MAX_IPUS_PER_PROCESS,
) -> Settings:
    """The cost model's settings of a program.

    :param optimizer: None for inference.
    :param num_ipus: IPUs of a replica, of which each gets its available memory proportion.
    """
    popart = Obeyed(options._Popart)
    mode = options._execution_strategy.backendOptions()["execution_mode"]
    recomputation = popart.recomputation
    proportions = options.available_memory_proportion
    found = None if optimizer is None else extract(optimizer)
    return Settings(
        micro_batch_size=micro_batch_size,
        gradient_accumulation=1 if found is None else options.Training.gradient_accumulation,
        replicas=options.replication_factor * options.Distributed.numProcesses,
        device_iterations=options.device_iterations,
        matmul_proportions=tuple(proportions.get(ipu, _DEFAULT_PROPORTION) for ipu in range(num_ipus)),
        half_partials=popart.half_matmul_partials,
        execution="pipelined" if mode == _PIPELINED else "sharded",
        # PopTorch turns it on by itself where there is a pipeline.
        recompute=mode == _PIPELINED if recomputation is None else recomputation != _NO_RECOMPUTATION,
        optimizer=None if found is None else _optimizer(options, found),
        accumulator_bytes=_FLOAT32_BYTES if found is None else found.settings.accumulator_type.itemsize,
        framework="PopTorch",
    )


def _optimizer(options: Options, found: Extracted) -> OptimizerSettings:
    locations = options.TensorLocations
    location = locations.location_optimizer if locations.exists("location_optimizer") else {}
    return OptimizerSettings(
        name=_NAMES[found.settings.rule],
        state_bytes_per_element=_state_bytes(found.settings),
        # PopART's own choice is the chip.
        location="on_chip" if location.get("onChip", True) else "off_chip",
        sharded=bool(location.get("useReplicatedTensorSharding", False)),
    )


def _state_bytes(settings: numerics.UpdateSettings) -> tuple[int, ...]:
    """Bytes of each state tensor's element. SGD's combined accumulator is the gradient accumulator itself."""
    first, second = settings.first_moment_type.itemsize, settings.second_moment_type.itemsize
    if settings.rule is Rule.SGD:
        return (first,) if settings.with_momentum and not settings.combined_accumulator else ()
    if settings.rule in (Rule.RMSPROP, Rule.RMSPROP_CENTERED):
        means = (first,) if settings.rule is Rule.RMSPROP_CENTERED else ()
        return (*means, second, *((first,) if settings.with_momentum else ()))
    return (first, second)
