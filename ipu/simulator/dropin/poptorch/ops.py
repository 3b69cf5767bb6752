"""Annotations and operations. All are differentiable, and work on CPU tensors outside of executors."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Mapping, NamedTuple

import torch
from ipu_simulator import environment
from ipu_simulator.host import needed_for

from ._run.structure import made_of, map_leaves
from ._trace import run as trace
from .blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, removeBlocks
from .enums import MatMulSerializationMode, OverlapMode
from .ops_control import cond, dynamic_slice, dynamic_update, for_loop
from .ops_custom import CPU, MultiConv, custom_op
from .ops_points import ctc_beam_search_decoder, fps, nearest
from .poptorch_core import createPoptorchError

__all__ = [
    "CPU",
    "Attribute",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "LegacyBeginBlockFn",
    "MultiConv",
    "NameScope",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """Identity; on the device, an operation that isn't fused with others."""
    return tensor.view_as(tensor)


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Marks `x`, reduced by "sum", "mean" or "none", as a loss, as torch's loss functions do implicitly.

    Raises AssertionError for another reduction.
    """
    assert reduction in ("sum", "mean", "none"), "Unsupported reduction type!"
    # A new tensor also for "none": the marked tensor must differ from its source.
    loss = x.view_as(x) if reduction == "none" else getattr(x, reduction)()
    run = trace.current()
    if run is not None:
        run.identity_losses.append(loss)
    return loss


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Marks tensors as recomputation checkpoints: they are stored for the backward pass, the rest recomputed.

    Returns a tensor for one tensor, a tuple for several, and a list or tuple for such an argument. Raises
    ValueError if an argument isn't a tensor.
    """
    container = None
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        container = type(tensors[0])
        tensors = tuple(tensors[0])
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise ValueError("All inputs must be tensors")
    marked = [nop(tensor) for tensor in tensors]
    recorder = trace.recorder()
    if recorder is not None:
        recorder.checkpoint(marked)
    if container is not None:
        return made_of(container, marked)
    return marked[0] if len(marked) == 1 else tuple(marked)


def serializedMatMul(
    lhs: torch.Tensor,
    rhs: torch.Tensor,
    mode: MatMulSerializationMode,
    factor: int = 0,
    keep_precision: bool = False,
) -> torch.Tensor:
    """torch.matmul(lhs, rhs), serialised on the device into `factor` slices along the dimension `mode`.

    Raises AssertionError for arguments of other types.
    """
    assert isinstance(keep_precision, bool), "keep_precision must be a bool"
    assert isinstance(factor, int), "factor must be an int"
    assert isinstance(mode, MatMulSerializationMode), "mode must be a poptorch.MatMulSerializationMode"
    recorder = trace.recorder()
    marked = recorder.marked(serialization=(mode.name, factor)) if recorder else contextlib.nullcontext()
    with marked:
        return torch.matmul(lhs, rhs)


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """Sets the proportion of memory (0 to 1) available to the operation that computed `tensor`; returns the
    tensor. Raises poptorch.Error if it isn't a tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise createPoptorchError(
            "You may only set available memory for torch.tensor values. "
            f"You have tried to set it for a value of type {type(tensor)}."
        )
    recorder = trace.recorder()
    if recorder is not None:
        recorder.mark_producer(tensor, available_memory_proportion=available_memory_proportion)
    return tensor.view_as(tensor)


# Whether ipu_print_tensor's float_format is scientific; None for fixed too.
_SCIENTIFIC = {"auto": None, "fixed": False, "scientific": True, "none": None}


class _PrintStyle(NamedTuple):
    summarise_threshold: int
    edge_items: int
    max_line_width: int
    digits: int
    scientific: bool | None
    separator: str
    open_bracket: str
    close_bracket: str

    def show(self, title: str, tensor: torch.Tensor) -> None:
        is_float = tensor.is_floating_point()
        with needed_for("ipu_print_tensor"):
            import numpy
        values = numpy.array2string(
            tensor.detach().float().numpy() if is_float else tensor.detach().numpy(),
            threshold=self.summarise_threshold,
            edgeitems=self.edge_items,
            max_line_width=self.max_line_width,
            separator=self.separator,
            formatter=({"float_kind": self._number} if is_float else None),  # type: ignore[arg-type]
        )
        values = values.replace("[", self.open_bracket).replace("]", self.close_bracket)
        environment.say(f"{title}: {values}")

    def _number(self, value: float) -> str:
        return f"{value:.{self.digits}e}" if self.scientific else f"{value:.{self.digits}f}"


def ipu_print_tensor(
    tensor: torch.Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> torch.Tensor:
    """Identity; in every run, prints the tensor's values to stderr, and in training its gradient's.

    Raises poptorch.Error if it isn't a tensor, KeyError for a `float_format` other than auto, fixed,
    scientific and none.
    """
    if not isinstance(tensor, torch.Tensor):
        raise createPoptorchError(
            f"ipu print tensor must take a torch.tensor argument. You have given it a {type(tensor)}."
        )
    style = _PrintStyle(
        summarise_threshold,
        edge_items,
        max_line_width,
        digits,
        _SCIENTIFIC[float_format],
        separator,
        open_bracket,
        close_bracket,
    )
    result = tensor.view_as(tensor)
    run = trace.current()
    if run is None:
        return result
    # During compilation there are no values to print.
    show = run.at_each_run if isinstance(run, trace.Trace) else lambda func, *args: func(*args)
    show(style.show, title, tensor)
    if print_gradient and result.requires_grad and not run.is_capture:
        result.register_hook(lambda gradient: style.show(f"Gradient___{title}", gradient))
    return result


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Identity; sets with which loop the inputs' transfers overlap. AssertionError for another `mode`.

    On the device, raises poptorch.Error for a tensor that is no argument of forward or is used otherwise
    too, and, unless the mode is NoOverlap, under pipelined execution and without I/O tiles.
    """
    return _overlapped(input_tensors, mode, "input")


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Identity; sets with which loop the outputs' transfers overlap. AssertionError for another `mode`.

    On the device, raises poptorch.Error for a tensor that isn't returned once and only that, and, unless the
    mode is NoOverlap, under pipelined execution and without I/O tiles.
    """
    return _overlapped(output_tensors, mode, "output")


def _overlapped(structure: Any, mode: OverlapMode, what: str) -> Any:
    assert isinstance(mode, OverlapMode), "mode must be a poptorch.OverlapMode"

    def marked(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        run, made = trace.current(), nop(leaf)
        if isinstance(run, trace.Trace):
            add = run.overlaps.add_input if what == "input" else run.overlaps.add_output
            add(leaf, made, mode)
        return made

    return map_leaves(structure, marked)


class Attribute:
    """A context that adds attributes to its operations: Attribute(__outline={"layer": "embedding"}).

    Contexts nest; leaving one restores the outer values. Raises AssertionError unless values are strings.
    """

    def __init__(self, **kwargs: dict[str, str]) -> None:
        for name, values in kwargs.items():
            assert isinstance(values, dict), f"Attribute {name} must be a dictionary"
            assert all(isinstance(value, str) for value in values.values()), (
                f"The values of attribute {name} must be strings"
            )
        self._attributes = kwargs
        self._outer: list[Mapping[str, dict[str, str]]] = []

    def __enter__(self) -> None:
        outer = trace.open_attributes()
        self._outer.append(outer)
        inner = {name: {**outer.get(name, {}), **values} for name, values in self._attributes.items()}
        trace.set_attributes({**outer, **inner})

    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        trace.set_attributes(self._outer.pop())


class NameScope:
    """A context that prefixes its operations' names with `name`. AssertionError if it isn't a string."""

    def __init__(self, name: str) -> None:
        assert isinstance(name, str), "Parameter to NameScope must be a string"
        self.name = name

    def __enter__(self) -> None:
        recorder = trace.recorder()
        if recorder is not None:
            recorder.enter_scope(self.name)

    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        recorder = trace.recorder()
        if recorder is not None:
            recorder.leave_scope()
