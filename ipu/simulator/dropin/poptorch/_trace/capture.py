"""Captures a model's graph for the cost model: forward and backward of one micro batch, on fake tensors."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from typing import TYPE_CHECKING, Any, Iterator

import torch
from ipu_simulator import numerics
from ipu_simulator.graph import fake as _stand_ins
from ipu_simulator.graph import recorder as _capture
from ipu_simulator.graph.fake import without_memory
from ipu_simulator.graph.ir import Graph, Role

from .. import enums
from .._run.structure import tensors, with_tensors
from . import run as _trace
from . import watch
from .casts import ImplicitCasts
from .checks import Checks
from .cost_settings import settings_of
from .losses import Losses, find_loss
from .patches import plain_kernels

if TYPE_CHECKING:
    from ..options import Options

__all__ = ["capture", "settings_of", "without_memory"]


class _Placement:
    """The forward pipeline stage that a trace is in: a new one begins where the IPU changes, from 0 on."""

    def __init__(self, trace: _trace.Trace) -> None:
        self._trace = trace
        self._seen = 0
        self._now = (0, 0)

    def __call__(self) -> tuple[int, int]:
        entries = self._trace.entries
        while self._seen < len(entries):
            stage, ipu = self._now
            to = entries[self._seen].ipu
            self._now = (stage + (to != ipu), to)
            self._seen += 1
        return self._now

    @property
    def stage_ipus(self) -> tuple[int, ...]:
        ipus = [0] + [entry.ipu for entry in self._trace.entries]
        return (0, *(after for before, after in itertools.pairwise(ipus) if before != after))


def _stand_in(weights: _stand_ins.WeightsStandIns) -> watch.Listener:
    """Gives a function the fake of a weight that it holds outside any module."""

    def on_call(proceed: watch.Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

    :param model: its weights may be real, fake or on the meta device; nothing about it changes.
    :param args, kwargs: one micro batch; of its tensors only shapes and dtypes count.
    :param with_values: computes with copies of real weights and inputs, for a model whose way through its
        operations depends on values.

    Raises poptorch.Error where the model or its options can't be compiled; whether the machine has IPUs
    enough isn't asked.
    """
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
    offline = options.clone()
    offline.connectionType(enums.ConnectionType.Never)
    with (
        weights.swapped_in(),
        mode or contextlib.nullcontext(),
        numerics.host_generator_kept(),
        torch.set_grad_enabled(training),
        plain_kernels(),
        _trace.tracing(offline) as trace,
    ):
        placement = _Placement(trace)
        recorder = trace.recorder = _capture.Recorder(placement, paths)
        for role, tensors_of_role in given.items():
            for name, tensor in tensors_of_role.items():
                recorder.declare(tensor, role, name)
        known = (weights.parameters.values(), weights.buffers.values(), inputs.values())
        checks, losses = Checks(itertools.chain(*known)), Losses()
        trace.mark_on_device = checks.mark_on_device
        with recorder.recording(), watch.captured_operations(trace, recorder):
            with watch.captured_calls(ImplicitCasts(), _stand_in(weights), checks, losses):
                outputs = tensors(model(*args, **kwargs))
            trace.validate(training)
            if training:
                loss = _loss(checks, losses, trace, outputs)
                recorder.backward(loss, weights.parameters.values())
        return recorder.graph(placement.stage_ipus, inputs.values(), outputs)


def _named_tensors(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors among a call's arguments, in their order, by the names of the forward's parameters."""
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
