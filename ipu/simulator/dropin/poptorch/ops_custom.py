"""Custom operations, host operations (CPU), and MultiConv.

A custom operation is compiled code for PopART. The simulator runs a PyTorch function instead, from the file
that IPU_SIMULATOR_CUSTOM_OPS names. Its dictionary CUSTOM_OPS maps (name, domain, version) to a function of
(list of input tensors, dictionary of attributes) that returns the outputs.
"""

from __future__ import annotations

import functools
import runpy
from types import TracebackType
from typing import Any, Callable, Mapping

import torch
from ipu_simulator import variables
from ipu_simulator.host import COMMAND

from ._run.structure import tensors
from ._trace import run as trace
from ._trace.multi_conv import MultiConvolution
from .enums import MultiConvPlanType
from .poptorch_core import createBackendError, createPoptorchError

Operation = tuple[str, str, int]  # name, domain, version
Function = Callable[[list[torch.Tensor], dict[str, Any]], Any]


def _fast_gather_last_dim(inputs: list[torch.Tensor], attributes: dict[str, Any]) -> torch.Tensor:
    """Gathers along the last dimension: data [..., n], indices [..., m] -> [..., m].

    Raises poptorch.Error unless both have the same dimensions but the last, and indices are integers.
    """
    data, indices = inputs
    if data.dim() == 0 or data.shape[:-1] != indices.shape[:-1] or data.dim() != indices.dim():
        raise createBackendError(
            "FastGatherLastDim takes data [..., n] and indices [..., m] of the same dimensions but the last: "
            f"got {list(data.shape)} and {list(indices.shape)}."
        )
    if indices.is_floating_point() or indices.dtype is torch.bool:
        raise createBackendError(f"FastGatherLastDim's indices must be integers, not {indices.dtype}.")
    return torch.gather(data, -1, indices.long())


# Custom operations that are part of PopTorch; optimum-graphcore's DeBERTa uses this one.
_OF_POPTORCH: dict[Operation, Function] = {
    ("FastGatherLastDim", "poptorch.custom_ops", 1): _fast_gather_last_dim,
}


def _run_function(
    operation: Operation, inputs: list[torch.Tensor], attributes: dict[str, Any], examples: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The outputs of the PyTorch function for `operation`, which gives their shapes and dtypes.

    Raises poptorch.Error if there is no such function, or if it doesn't return as many tensors as `examples`.
    """
    name, domain, version = operation
    what = f"The custom operation {domain}.{name} (version {version})"
    path = variables.custom_ops_file()
    function = (_functions(path) if path else {}).get(operation) or _OF_POPTORCH.get(operation)
    if function is None:
        where = f" {path} has none for {operation!r}." if path else ""
        raise createPoptorchError(
            f"{what} is written for PopART: the simulator needs a PyTorch function instead.{where} Put it "
            "into a file as CUSTOM_OPS = {(name, domain, version): function of (inputs, attributes)}, and "
            f"pass it: {COMMAND} --custom-ops FILE.py SCRIPT, or {variables.CUSTOM_OPS}=FILE.py"
        )
    outputs = function(list(inputs), dict(attributes))
    made = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    if len(made) != len(examples):
        raise createPoptorchError(
            f"{what} has {len(examples)} example_outputs, but its function returns {len(made)}"
        )
    for index, output in enumerate(made):
        if not isinstance(output, torch.Tensor):
            raise createPoptorchError(
                f"{what}: output {index} of its function is a {type(output)}, not a tensor"
            )
    return made


@functools.cache
def _functions(path: str) -> dict[Operation, Function]:
    try:
        functions = runpy.run_path(path)["CUSTOM_OPS"]
    except Exception as error:
        raise createPoptorchError(
            f"{variables.CUSTOM_OPS}={path}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(functions, dict) or not all(callable(function) for function in functions.values()):
        raise createPoptorchError(
            f"{variables.CUSTOM_OPS}={path}: CUSTOM_OPS must be a dictionary of functions by "
            "(name, domain, version)"
        )
    return functions


_LARGEST_FLOAT = torch.finfo(torch.float32).max
_INTEGERS = torch.iinfo(torch.int64)


def _check_attributes(attributes: dict[str, Any]) -> None:
    """Raises ValueError or poptorch.Error for attributes that PopART can't hold."""
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise ValueError(f"Attributes must have string keys: got {key!r}")
        _check_ascii("The attribute's name", key)
        elements = value if isinstance(value, (list, tuple)) else [value]
        if not elements:
            raise ValueError(f"Attribute {key} is an empty list")
        if len({type(element) for element in elements}) > 1:
            raise ValueError(f"Attribute {key} has elements of several types")
        if not isinstance(elements[0], (int, float, str)):
            raise ValueError(f"Attribute {key} has elements of an unsupported type, {type(elements[0])}")
        for element in elements:
            if isinstance(element, str):
                _check_ascii(f"Attribute {key}", element)
            elif isinstance(element, float) and abs(element) > _LARGEST_FLOAT:
                side = "high" if element > 0 else "low"
                raise createBackendError(f"{element} is too {side} for a Popart float attribute.")
            elif isinstance(element, int) and not _INTEGERS.min <= element <= _INTEGERS.max:
                raise ValueError(f"Attribute {key} is beyond 64 bits: {element}")


def _check_ascii(what: str, text: str) -> None:
    if not text.isascii():
        raise ValueError(f"{what} has characters that aren't ASCII: {text!r}")


def custom_op(
    inputs: Any,
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Any,
    attributes: dict[str, Any] | None = None,
) -> list[torch.Tensor]:
    """Runs a custom operation, with as many outputs as there are `example_outputs`.

    On the host, it returns zeros like the examples; on the simulator's device, the results of the PyTorch
    function given by --custom-ops, which has its own shapes and dtypes. Raises poptorch.Error without such a
    function and for floats beyond float32, ValueError for other attributes that PopART doesn't support.
    """
    _check_attributes(attributes or {})
    run = trace.current()
    if run is None:
        return [torch.zeros_like(example) for example in example_outputs]
    with trace.as_host(), torch._C.DisableTorchFunction():
        outputs = _run_function(
            (name, domain, domain_version), list(inputs), attributes or {}, list(example_outputs)
        )
    run.mark_on_device(outputs, list(inputs))
    return outputs


class CPU:
    """Calls a layer on the host in the middle of a model on the device."""

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        self._layer_to_call = layer_to_call
        self._id = ID
        self._inputs: tuple[Any, ...] = ()
        self._outputs: Any = None

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        self._inputs = input
        run = trace.current()
        # The layer may do anything that a traced model may not (.item(), .cpu()).
        with trace.as_host(), torch._C.DisableTorchFunction():
            self._outputs = self._layer_to_call(*input, **kwargs)
        if run is not None:
            run.mark_on_device(tensors(self._outputs), tensors(input))
        return self._outputs

    def execute(self) -> None:
        """Calls the layer again with the inputs of the last call."""
        self(*self._inputs)

    def registerPersistentData(self) -> None:
        """No-op: the simulator's device shares the host's memory."""


class MultiConv:
    """A context whose convolutions are planned together. A setting is a single value, or a list of one per
    convolution.

    On the device, raises poptorch.Error for nested contexts, a context without convolutions, a convolution
    that needs another one's result, and for lists of another length.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}

    def _set(self, name: str, value: Any, kind: type | tuple[type, ...], single: bool = False) -> MultiConv:
        values = [value] if single or not isinstance(value, (list, tuple)) else value
        if not all(isinstance(one, kind) for one in values):
            raise AssertionError(f"Invalid value for {name}: {value!r}")
        self._settings[name] = value
        return self

    def availableMemoryProportions(self, value: float | list[float]) -> MultiConv:
        """The proportion of memory available to each convolution, 0 to 1. AssertionError unless a float."""
        return self._set("availableMemoryProportions", value, float)

    def partialsTypes(self, value: torch.dtype | list[torch.dtype]) -> MultiConv:
        """The types of partials: torch.float or torch.half, otherwise ValueError."""
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(one not in (torch.float, torch.half) for one in values):
            raise ValueError("Invalid partials types. Expecting torch.float or torch.half")
        return self._set("partialsTypes", value, torch.dtype)

    def enableConvDithering(self, value: bool | list[bool]) -> MultiConv:
        """Starts convolutions on pseudorandom tiles. AssertionError unless a bool."""
        return self._set("enableConvDithering", value, bool)

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        """Whether the convolutions run in parallel. AssertionError unless a poptorch.MultiConvPlanType."""
        return self._set("planType", value, MultiConvPlanType, single=True)

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """The number of tiles reserved for each convolution. AssertionError unless an int."""
        return self._set("perConvReservedTiles", value, int, single=True)

    def cycleBackOff(self, value: float) -> MultiConv:
        """The proportion of cycles that may be traded for memory. AssertionError unless a float."""
        return self._set("cycleBackOff", value, float, single=True)

    def __enter__(self) -> None:
        run = trace.current()
        if not isinstance(run, trace.Trace):
            return
        if run.multi_convolution is not None:
            raise createBackendError("Nested poptorch.MultiConv operations are not supported.")
        run.multi_convolution = MultiConvolution()

    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run = trace.current()
        if type is None:
            end_multi_conv(self._settings)
        elif isinstance(run, trace.Trace):
            run.multi_convolution = None


def end_multi_conv(settings: Mapping[str, Any]) -> None:
    """Ends the open MultiConv of a compilation. Raises poptorch.Error if it has no convolutions, or if a list
    of settings has another length.
    """
    run = trace.current()
    if not isinstance(run, trace.Trace) or run.multi_convolution is None:
        return
    count, run.multi_convolution = run.multi_convolution.count, None
    if not count:
        raise createBackendError(
            "poptorch.MultiConv has no convolutions: call at least one layer with a convolution in it."
        )
    for name, values in settings.items():
        if isinstance(values, (list, tuple)) and len(values) != count:
            raise createBackendError(
                f"poptorch.MultiConv().{name} has {len(values)} values for {count} convolutions: "
                "pass one per convolution, or a single value."
            )
