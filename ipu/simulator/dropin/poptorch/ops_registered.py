"""The operators of torch.ops.poptorch: PopTorch registers them, and some programs call them directly.

Each has the effect of the public function or context that PopTorch builds on it, with plain names and numbers
for enumerations. On the host, outside of a model's run, contexts do nothing.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Callable

import torch

from . import ops, ops_control, ops_custom, ops_points
from ._trace import run as trace
from ._trace import watch
from ._trace.bodies import Loop
from .enums import MatMulSerializationMode, OverlapMode
from .poptorch_core import createBackendError, createPoptorchError

_functions: dict[str, Callable[..., Any]] = {}  # by schema


def _operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        _functions[schema] = function
        return function

    return keep


def register() -> None:
    """Registers the operators. Forwards see the operations that they consist of, as from public functions.

    PyTorch takes a registration once in a process: if this package is imported again, the first one stays.
    """
    operators: Any = torch.ops.poptorch
    if not hasattr(operators, "_library"):
        operators._library = library = torch.library.Library("poptorch", "DEF")  # ends with this object
        for schema, function in _functions.items():
            library.define(schema)
            library.impl(schema.partition("(")[0], function, "CompositeImplicitAutograd")
    for schema, function in _functions.items():
        packet = getattr(operators, schema.partition("(")[0])
        watch.COMPOSED[packet] = watch.COMPOSED[packet.default] = function


# ---- blocks, scopes, attributes


@_operator("begin_ipu_block(int stage_id, int phase_id, int ipu_id) -> ()")
def _begin_ipu_block(stage_id: int, phase_id: int, ipu_id: int) -> None:
    run = trace.current()
    if run is not None:
        run.enter(stage_id, ipu_id)


@_operator("end_ipu_block() -> ()")
def _end_ipu_block() -> None:
    run = trace.current()
    if run is not None:
        run.end_block()


@_operator("push_name_scope(str name) -> ()")
def _push_name_scope(name: str) -> None:
    recorder = trace.recorder()
    if recorder is not None:
        recorder.enter_scope(name)


@_operator("pop_name_scope() -> ()")
def _pop_name_scope() -> None:
    recorder = trace.recorder()
    if recorder is not None:
        recorder.leave_scope()


@_operator("set_attribute(str attribute, str key, str value) -> ()")
def _set_attribute(attribute: str, key: str, value: str) -> None:
    if trace.current() is not None:
        outer = trace.open_attributes()
        trace.set_attributes({**outer, attribute: {**outer.get(attribute, {}), key: value}})


@_operator("clear_attribute(str attribute, str key) -> ()")
def _clear_attribute(attribute: str, key: str) -> None:
    if trace.current() is not None:
        left = {name: dict(values) for name, values in trace.open_attributes().items()}
        left.get(attribute, {}).pop(key, None)
        trace.set_attributes({name: values for name, values in left.items() if values})


@_operator("optimizer_group(int group, Tensor[] inputs) -> ()")
def _optimizer_group(group: int, inputs: list[torch.Tensor]) -> None:
    """No-op: the executor reads groups from the optimizer."""


# ---- tensors


@_operator("nop(Tensor self) -> Tensor")
def _nop(self: torch.Tensor) -> torch.Tensor:
    return ops.nop(self)


# ONNX's names, which PopART uses.
_TYPES = {
    "BOOL": torch.bool,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
}


@_operator("internal_cast(Tensor self, str dtype) -> Tensor")
def _internal_cast(self: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype not in _TYPES:
        raise createBackendError(
            f"torch.ops.poptorch.internal_cast: unknown type {dtype!r}. Valid types are {', '.join(_TYPES)}."
        )
    return self.to(_TYPES[dtype])


@_operator("identity_loss(Tensor x, int reduction) -> Tensor")
def _identity_loss(x: torch.Tensor, reduction: int) -> torch.Tensor:
    names = ("sum", "mean", "none")
    return ops.identity_loss(x, names[reduction] if 0 <= reduction < len(names) else str(reduction))


@_operator("recomputation_checkpoint(Tensor self) -> Tensor")
def _recomputation_checkpoint(self: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = ops.recomputationCheckpoint(self)
    return made


@_operator("set_available_memory(Tensor t, float mem) -> Tensor")
def _set_available_memory(t: torch.Tensor, mem: float) -> torch.Tensor:
    return ops.set_available_memory(t, mem)


@_operator("set_matmul_serialization(Tensor matmul, str mode, int factor, int keep_precision) -> Tensor")
def _set_matmul_serialization(
    matmul: torch.Tensor, mode: str, factor: int, keep_precision: int
) -> torch.Tensor:
    recorder = trace.recorder()
    if recorder is not None:
        recorder.mark_producer(matmul, serialization=(MatMulSerializationMode(mode).name, factor))
    return ops.nop(matmul)


@_operator("set_overlap_for_input(Tensor t, str mode) -> Tensor")
def _set_overlap_for_input(t: torch.Tensor, mode: str) -> torch.Tensor:
    made: torch.Tensor = ops.set_overlap_for_input(t, OverlapMode(mode))
    return made


@_operator("set_overlap_for_output(Tensor t, str mode) -> Tensor")
def _set_overlap_for_output(t: torch.Tensor, mode: str) -> torch.Tensor:
    made: torch.Tensor = ops.set_overlap_for_output(t, OverlapMode(mode))
    return made


@_operator("update_param_inplace(Tensor(a!) self, Tensor src) -> Tensor(a!)")
def _update_param_inplace(self: torch.Tensor, src: torch.Tensor) -> torch.Tensor:
    return self.copy_(src)


_PRINT = (
    "ipu_print_tensor(Tensor self, str title='', int print_gradient=1, int summarise_threshold=1000, "
    "int edge_items=3, int max_line_width=80, int digits=4, int float_format=0, str separator=', ', "
    "str open_bracket='(', str close_bracket=')') -> Tensor"
)


@_operator(_PRINT)
def _ipu_print_tensor(
    self: torch.Tensor,
    title: str = "",
    print_gradient: int = 1,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: int = 0,
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> torch.Tensor:
    return ops.ipu_print_tensor(
        self,
        title,
        bool(print_gradient),
        summarise_threshold,
        edge_items,
        max_line_width,
        digits,
        ("auto", "fixed", "scientific", "none")[float_format],
        separator,
        open_bracket,
        close_bracket,
    )


@_operator("dynamic_slice(Tensor self, int dim, Tensor start, int size, int step) -> Tensor")
def _dynamic_slice(self: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    return ops_control.dynamic_slice(self, dim, start, size, step)


@_operator("dynamic_update(Tensor self, Tensor src, int dim, Tensor start, int size) -> Tensor")
def _dynamic_update(
    self: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int
) -> torch.Tensor:
    return ops_control.dynamic_update(self, src, dim, start, size)


@_operator("fps(Tensor src, int[] ptr, float ratio=0.5, bool random_start=False) -> Tensor")
def _fps(src: torch.Tensor, ptr: list[int], ratio: float = 0.5, random_start: bool = False) -> torch.Tensor:
    return ops_points.fps(src, ptr, ratio, random_start)


@_operator("nearest(Tensor x, Tensor y, Tensor? batch_x=None, Tensor? batch_y=None) -> Tensor")
def _nearest(
    x: torch.Tensor,
    y: torch.Tensor,
    batch_x: torch.Tensor | None = None,
    batch_y: torch.Tensor | None = None,
) -> torch.Tensor:
    return ops_points.nearest(x, y, batch_x, batch_y)


@_operator("nearest_batch_list(Tensor x, Tensor y, int[] batch_x, int[] batch_y) -> Tensor")
def _nearest_batch_list(
    x: torch.Tensor, y: torch.Tensor, batch_x: list[int], batch_y: list[int]
) -> torch.Tensor:
    return ops_points.nearest(x, y, batch_x, batch_y)


_CTC = (
    "ctc_beam_search_decoder(Tensor probs, Tensor lengths, int blank=0, int width=100, int top_paths=1) "
    "-> (Tensor, Tensor, Tensor)"
)


@_operator(_CTC)
def _ctc_beam_search_decoder(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int = 0, width: int = 100, top_paths: int = 1
) -> tuple[torch.Tensor, ...]:
    return tuple(ops_points.ctc_beam_search_decoder(probs, lengths, blank, width, top_paths))


_CUSTOM = (
    "custom_operation(Tensor[] inputs, str name, str domain, int domain_version, int num_outputs, "
    "Tensor[] outputs, str attributes='{}') -> Tensor[]"
)


@_operator(_CUSTOM)
def _custom_operation(
    inputs: list[torch.Tensor],
    name: str,
    domain: str,
    domain_version: int,
    num_outputs: int,
    outputs: list[torch.Tensor],
    attributes: str = "{}",
) -> list[torch.Tensor]:
    try:
        given = json.loads(attributes or "{}")
    except ValueError as error:
        raise createPoptorchError(
            f"torch.ops.poptorch.custom_operation: attributes are a JSON object on the simulator, not "
            f"{attributes!r}; poptorch.custom_op takes a dictionary"
        ) from error
    return ops_custom.custom_op(inputs, name, domain, domain_version, outputs, given)


# ---- convolutions planned together


@_operator("begin_multi_conv() -> ()")
def _begin_multi_conv() -> None:
    ops_custom.MultiConv().__enter__()


_END_MULTI_CONV = (
    "end_multi_conv(float[]? available_memory_proportions=None, int[]? partials_types=None, "
    "int? plan_type=None, int? per_conv_reserved_tiles=None, float? cycle_back_off=None, "
    "int[]? enable_conv_dithering=None) -> ()"
)


@_operator(_END_MULTI_CONV)
def _end_multi_conv(
    available_memory_proportions: list[float] | None = None,
    partials_types: list[int] | None = None,
    plan_type: int | None = None,
    per_conv_reserved_tiles: int | None = None,
    cycle_back_off: float | None = None,
    enable_conv_dithering: list[int] | None = None,
) -> None:
    by_convolution = {
        "availableMemoryProportions": available_memory_proportions,
        "partialsTypes": partials_types,
        "enableConvDithering": enable_conv_dithering,
    }
    ops_custom.end_multi_conv({name: values for name, values in by_convolution.items() if values is not None})


# ---- control flow, host code


@_operator("start_if_block(Tensor condition) -> ()")
def _start_if_block(condition: torch.Tensor) -> None:
    run = trace.current()
    if run is not None:
        run.inference_only.append("poptorch.cond()")


@_operator("start_else_block(Tensor[] outputs) -> ()")
def _start_else_block(outputs: list[torch.Tensor]) -> None:
    run = trace.current()
    if run is not None:
        run.branches.append(outputs)


@_operator("end_if_block(Tensor[] outputs, Tensor condition) -> Tensor[]")
def _end_if_block(outputs: list[torch.Tensor], condition: torch.Tensor) -> list[torch.Tensor]:
    run = trace.current()
    if run is None:
        return [output.clone() for output in outputs]
    if not run.branches:
        raise createBackendError("torch.ops.poptorch.end_if_block without start_else_block")
    return ops_control.chosen(condition, run.branches.pop(), outputs)


@_operator("start_for_loop(Tensor[] inputs) -> ()")
def _start_for_loop(inputs: list[torch.Tensor]) -> None:
    run = trace.current()
    if run is not None:
        run.inference_only.append("poptorch.for_loop()")
        run.has_loops = True
        run.loops.append(Loop(inputs))


@_operator("end_for_loop(Tensor[] outputs, int trip_count) -> Tensor[]")
def _end_for_loop(outputs: list[torch.Tensor], trip_count: int) -> list[torch.Tensor]:
    run = trace.current()
    if run is None:
        return [output.clone() for output in outputs]
    if not run.loops:
        raise createBackendError("torch.ops.poptorch.end_for_loop without start_for_loop")
    loop = run.loops.pop()
    ops_control.check_same("poptorch.for_loop()", "input", loop.inputs, "output of the body", outputs)
    return loop.repeated(trip_count, outputs)


@_operator("call_cpu_op(Tensor[] inputs, str name) -> ()")
def _call_cpu_op(inputs: list[torch.Tensor], name: str) -> None:
    run = trace.current()
    if run is not None:
        # As poptorch.CPU: the host may do anything that a traced model may not.
        contexts = contextlib.ExitStack()
        contexts.enter_context(trace.as_host())
        contexts.enter_context(torch._C.DisableTorchFunction())
        run.open_ends.push(contexts)
        run.host_code = contexts, inputs


@_operator("end_cpu_op(Tensor[] output) -> Tensor[]")
def _end_cpu_op(output: list[torch.Tensor]) -> list[torch.Tensor]:
    run = trace.surrounding()
    if run is not None and run.host_code is not None:
        (contexts, inputs), run.host_code = run.host_code, None
        contexts.close()
        run.mark_on_device(output, inputs)
    return output
