"""What a program's cost depends on beside its graph, read off its options and its optimizer.

Not covered: weights, accumulators and activations that the options place off the chip (they are costed on
it), input/output tiles, automatic loss scaling's histograms.
"""

from __future__ import annotations

from typing import Any

import torch

from ipu_simulator.cost import settings as _settings

from ipu_simulator import numerics
from .optim._extract import Extracted, extract
from .poptorch_core import MAX_IPUS_PER_PROCESS

# PopTorch: setAvailableMemoryProportion, "default 0.6".
_DEFAULT_PROPORTION = 0.6
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
    options: Any,
    optimizer: torch.optim.Optimizer | None,
    micro_batch_size: int,
    num_ipus: int = MAX_IPUS_PER_PROCESS,
) -> Any:
    """Settings (ipu_simulator/cost/settings.py) of a program.

    :param optimizer: None for inference.
    :param num_ipus: IPUs of a replica, of which each gets its available memory proportion.
    """
    popart = options._Popart.options
    mode = options._execution_strategy.backendOptions()["execution_mode"]
    recomputation = popart.get("autoRecomputation")
    proportions = options.available_memory_proportion
    training = optimizer is not None
    return _settings.Settings(
        micro_batch_size=micro_batch_size,
        gradient_accumulation=options.Training.gradient_accumulation if training else 1,
        replicas=options.replication_factor * options.Distributed.numProcesses,
        device_iterations=options.device_iterations,
        matmul_proportions=tuple(proportions.get(ipu, _DEFAULT_PROPORTION) for ipu in range(num_ipus)),
        half_partials=popart.get("partialsTypeMatMuls") == "half",
        execution="pipelined" if mode == _PIPELINED else "sharded",
        # PopTorch turns it on by itself where there is a pipeline.
        recompute=mode == _PIPELINED if recomputation is None else recomputation != _NO_RECOMPUTATION,
        optimizer=_optimizer(options, optimizer) if training else None,
        accumulator_bytes=_bytes_of(optimizer, "accum_type"),
        framework="PopTorch",
    )


def _optimizer(options: Any, optimizer: torch.optim.Optimizer) -> Any:
    location = getattr(options.TensorLocations, "location_optimizer", {})
    return _settings.OptimizerSettings(
        name=_NAMES[extract(optimizer).settings.rule],
        state_bytes_per_element=_state_bytes(optimizer, extract(optimizer)),
        # PopART's own choice is the chip.
        location="on_chip" if location.get("onChip", True) else "off_chip",
        sharded=bool(location.get("useReplicatedTensorSharding", False)),
    )


def _state_bytes(optimizer: torch.optim.Optimizer, found: Extracted) -> tuple[int, ...]:
    """Bytes of each state tensor's element. SGD's combined accumulator is the gradient accumulator itself."""
    rule, settings = found.settings.rule, found.settings
    if rule is Rule.SGD:
        if not settings.with_momentum or settings.combined_accumulator:
            return ()
        return (_bytes_of(optimizer, "velocity_accum_type"),)
    if rule in (Rule.RMSPROP, Rule.RMSPROP_CENTERED):
        second = _bytes_of(optimizer, "second_order_momentum_accum_type")
        first = _bytes_of(optimizer, "first_order_momentum_accum_type")
        means = (first,) if rule is Rule.RMSPROP_CENTERED else ()
        return (*means, second, *((first,) if settings.with_momentum else ()))
    return (
        _bytes_of(optimizer, "first_order_momentum_accum_type"),
        _bytes_of(optimizer, "second_order_momentum_accum_type"),
    )


def _bytes_of(optimizer: torch.optim.Optimizer | None, name: str) -> int:
    """Element size of what an optimizer's argument gives a type; float32 where it has no such argument."""
    return getattr(optimizer, name, torch.float32).itemsize
