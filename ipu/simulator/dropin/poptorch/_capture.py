"""Captures a model's graph for the cost model: forward and backward of one micro batch, on fake tensors."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from typing import Any, Iterable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ipu_simulator.graph import capture as _capture
from ipu_simulator.graph import stand_ins as _stand_ins
from ipu_simulator.graph.stand_ins import without_memory

from . import _trace, enums
from ._casts import ImplicitCasts
from ._compile_tap import CompileTap
from ._losses import find_loss
from ipu_simulator import numerics
from ._settings import settings_of
from ._structure import tensors, with_tensors

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


class _Tap(CompileTap):
    """Also gives a function the fake of a weight that it holds outside any module."""

    def __init__(self, weights: Any, inputs: Iterable[torch.Tensor]) -> None:
        super().__init__([*weights.parameters.values(), *weights.buffers.values(), *inputs])
        self._weights = weights

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = tuple(self._weights.of(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)
        return super().__torch_function__(func, types, args, kwargs)


def capture(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Any,
    training: bool,
    with_values: bool = False,
) -> Any:
    """The graph (ipu_simulator/graph/ir.py) of one micro batch.

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
    given = {"parameter": weights.parameters, "buffer": weights.buffers, "input": inputs}
    paths = {id(module): name for name, module in model.named_modules()}
    offline = options.clone()
    offline.connectionType(enums.ConnectionType.Never)
    with (
        weights.swapped_in(),
        mode or contextlib.nullcontext(),
        numerics.host_generator_kept(),
        torch.set_grad_enabled(training),
        _plain_kernels(),
        _trace.tracing(offline) as trace,
    ):
        placement = _Placement(trace)
        recorder = trace.recorder = _capture.Recorder(placement, paths)
        for role, tensors_of_role in given.items():
            for name, tensor in tensors_of_role.items():
                recorder.declare(tensor, role, name)
        tap = _Tap(weights, inputs.values())
        trace.mark_on_device = tap.mark_on_device
        with recorder.recording():
            with tap, ImplicitCasts():
                outputs = tensors(model(*args, **kwargs))
            trace.validate(training)
            if training:
                recorder.backward(_loss(tap, trace, outputs), weights.parameters.values())
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


def _loss(tap: CompileTap, trace: _trace.Trace, outputs: list[torch.Tensor]) -> torch.Tensor:
    place = find_loss(tap.losses, trace.identity_losses, outputs, tap.sources)
    found = {"output": outputs, "identity": trace.identity_losses, "function": tap.losses}
    return found[place.kind][place.index]


@contextlib.contextmanager
def _plain_kernels():
    """Inside, tensors are made on the CPU unless a program says otherwise, and nothing runs as a kernel that
    only CPUs have: such would hide what it is composed of.
    """
    on_cpu = torch.get_default_device().type == "cpu"
    had_mkldnn, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        with sdpa_kernel(SDPBackend.MATH), contextlib.nullcontext() if on_cpu else torch.device("cpu"):
            yield
    finally:
        torch.backends.mkldnn.enabled = had_mkldnn
