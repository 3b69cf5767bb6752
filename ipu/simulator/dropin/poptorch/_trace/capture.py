"""Captures a model's graph and settings for the cost model.

The graph is the forward and backward pass of one micro batch on fake tensors. The settings come from options
and optimizer. Weights, accumulators and activations that the options place off the chip take streaming memory
and are costed on the chip. The settings don't cover I/O tiles, and automatic loss scaling's histograms.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from typing import TYPE_CHECKING, Any, Iterator

import torch
from ipu_simulator import numerics
from ipu_simulator.cost.settings import OptimizerSettings, Settings
from ipu_simulator.graph import fake as _stand_ins
from ipu_simulator.graph.fake import without_memory
from ipu_simulator.graph.ir import Graph, Role
from ipu_simulator.graph.numbering import check_types, graph_of
from ipu_simulator.graph.recorder import Recorder
from torch.utils._python_dispatch import _disable_current_modes

from .._options.popart import Obeyed
from .._run.structure import tensors, with_tensors
from ..optim.settings import Extracted, extract
from ..poptorch_core import MAX_IPUS_PER_PROCESS
from . import Call, Listener, watch
from . import run as _trace
from .casts import ImplicitCasts
from .checks import Checks
from .errors import explained
from .losses import Losses, find_loss
from .patches import plain_kernels

if TYPE_CHECKING:
    from ..options import Options


# PopTorch: setAvailableMemoryProportion, "default 0.6".
_DEFAULT_PROPORTION = 0.6
# Default of gradient accumulators.
_FLOAT32_BYTES = 4
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
    :param num_ipus: IPUs per replica; each gets its available memory proportion.
    """
    popart = Obeyed(options._Popart)
    pipelined = options._execution_strategy._is_pipelined
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
        execution="pipelined" if pipelined else "sharded",
        # PopTorch turns it on automatically for pipelined execution.
        recompute=pipelined if recomputation is None else recomputation != _NO_RECOMPUTATION,
        optimizer=None if found is None else _optimizer(options, found),
        accumulator_bytes=_FLOAT32_BYTES if found is None else found.settings.accumulator_type.itemsize,
        framework="PopTorch",
        instances=options.Distributed.numProcesses,
        updates_overlap=popart.updates_overlap,
        updates_apart=popart.updates_apart,
        off_chip=_off_chip(options, "onChip", False),
        off_chip_sharded=_off_chip(options, "useReplicatedTensorSharding", True),
    )


# What PopTorch's names of locations place, as the cost model names it.
_LOCATIONS = {
    "location_weight": "weights",
    "location_accumulator": "gradient_accumulators",
    "location_activation": "stashes",
}


def _off_chip(options: Options, key: str, wanted: bool) -> frozenset[str]:
    """What the options' locations place off the chip with this value of a key; optimiser state is apart."""
    locations = options.TensorLocations
    found = set()
    for name, what in _LOCATIONS.items():
        location = getattr(locations, name) if locations.exists(name) else {}
        if not location.get("onChip", True) and bool(location.get(key)) is wanted:
            found.add(what)
    return frozenset(found)


def _optimizer(options: Options, found: Extracted) -> OptimizerSettings:
    locations = options.TensorLocations
    location = locations.location_optimizer if locations.exists("location_optimizer") else {}
    return OptimizerSettings(
        name=_NAMES[found.settings.rule],
        state_bytes_per_element=_state_bytes(found.settings),
        # PopART's default is on chip.
        location="on_chip" if location.get("onChip", True) else "off_chip",
        sharded=bool(location.get("useReplicatedTensorSharding", False)),
    )


def _state_bytes(settings: numerics.UpdateSettings) -> tuple[int, ...]:
    """Bytes per element of each state tensor. SGD's combined accumulator is the gradient accumulator."""
    first, second = settings.first_moment_type.itemsize, settings.second_moment_type.itemsize
    if settings.rule is Rule.SGD:
        return (first,) if settings.with_momentum and not settings.combined_accumulator else ()
    if settings.rule in (Rule.RMSPROP, Rule.RMSPROP_CENTERED):
        means = (first,) if settings.rule is Rule.RMSPROP_CENTERED else ()
        return (*means, second, *((first,) if settings.with_momentum else ()))
    return (first, second)


__all__ = ["capture", "settings_of", "without_memory"]


def _stand_in(weights: _stand_ins.WeightsStandIns) -> Listener:
    """Listener that replaces weights held outside of modules (closures, globals) by their fakes."""

    def on_call(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = tuple([weights.of(arg) if isinstance(arg, torch.Tensor) else arg for arg in args])
        return proceed(func, known, kwargs)

    return on_call


def capture(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    training: bool,
    with_values: bool = False,
) -> Graph:
    """The graph of one micro batch.

    :param model: its weights may be real, fake or on the meta device; the model isn't changed.
    :param args, kwargs: one micro batch; only shapes and dtypes of its tensors count.
    :param with_values: computes with copies of real weights and inputs, for a model whose control flow
        depends on values.

    Raises poptorch.Error if the model or its options can't be compiled, but not if the machine has too few
    IPUs.
    """
    with _stand_ins.without_compiler():
        try:
            return _captured(model, args, kwargs, options, training, with_values, in_place=False)
        except _Overwritten:
            return _captured(model, args, kwargs, options, training, with_values, in_place=True)


class _Overwritten(Exception):
    """The backward pass failed, maybe as an in-place operation overwrote a tensor that it needs."""


def _captured(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    training: bool,
    with_values: bool,
    in_place: bool,
) -> Graph:
    """See capture; `in_place`: gradients use tensors' values from before in-place operations."""
    mode = None if with_values else _stand_ins.fake_mode()
    weights = _stand_ins.WeightsStandIns(mode, model, numerics.device_dtype)
    named = dict(_named_tensors(model, args, kwargs))
    inputs = {
        name: _stand_ins.stand_in(mode, tensor, numerics.device_dtype) for name, tensor in named.items()
    }
    args, kwargs = with_tensors((tuple(args), dict(kwargs)), list(inputs.values()))
    given: dict[Role, dict[str, torch.Tensor]] = {
        "parameter": weights.parameters,
        "buffer": weights.buffers,
        "input": inputs,
    }
    paths = {id(module): name for name, module in model.named_modules()}
    with (
        weights.swapped_in(),
        mode or contextlib.nullcontext(),
        numerics.host_generator_kept(),
        torch.set_grad_enabled(training),
        plain_kernels(),
        _trace.tracing(options, list(inputs.values())) as trace,
    ):
        recorder = trace.recorder = Recorder(trace.place, paths, check_types)
        trace.is_capture = True
        for role, tensors_of_role in given.items():
            for name, tensor in tensors_of_role.items():
                recorder.declare(tensor, role, name)
        known = (weights.parameters.values(), weights.buffers.values(), inputs.values())
        checks, losses = Checks(itertools.chain(*known), hides_devices=mode is not None), Losses()
        trace.on_device = lambda: checks.computes
        trace.mark_on_device = checks.mark_on_device

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            with _disable_current_modes():
                copy = _stand_ins.stand_in(mode, tensor, numerics.device_dtype)
            recorder.stands_for(copy, tensor)
            return copy

        with (
            recorder.in_modules(),
            watch.captured_operations(trace, recorder),
            numerics.SavedTensors(copied) if in_place else contextlib.nullcontext(),
        ):
            with (
                explained(model, compiling=True),
                watch.captured_calls(ImplicitCasts(), _stand_in(weights), checks, losses),
            ):
                outputs = tensors(model(*args, **kwargs))
            trace.validate(training)
            trace.overlaps.check(outputs, checks.sources)
            if training:
                loss = _loss(checks, losses, trace, outputs)
                try:
                    recorder.backward(loss, weights.parameters.values())
                except RuntimeError as error:
                    if in_place:
                        raise
                    raise _Overwritten from error
        return graph_of(recorder, trace.stage_ipus, inputs.values(), outputs)


def _named_tensors(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of each tensor argument, in order, named after the forward's parameters."""
    parameters = list(inspect.signature(model.forward).parameters)
    for index, (name, value) in enumerate(
        [*itertools.zip_longest(parameters[: len(args)], args), *kwargs.items()]
    ):
        found = tensors(value)
        for position, tensor in enumerate(found):
            base = name or f"argument{index}"
            yield base if len(found) == 1 else f"{base}.{position}", tensor


def _loss(checks: Checks, losses: Losses, trace: _trace.Trace, outputs: list[torch.Tensor]) -> torch.Tensor:
    place = find_loss(losses.found, trace.identity_losses, outputs, checks.sources)
    found = {"output": outputs, "identity": trace.identity_losses, "function": losses.found}
    return found[place.kind][place.index]
