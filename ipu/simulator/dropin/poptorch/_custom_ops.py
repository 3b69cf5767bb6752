"""A program's own operations, as PyTorch functions that stand for PopART's code.

The file that IPU_SIMULATOR_CUSTOM_OPS names holds CUSTOM_OPS, a dictionary: (name, domain, version) -> a
function of (list of input tensors, dictionary of attributes) that returns the outputs.
"""

from __future__ import annotations

import functools
import os
import runpy
from typing import Any, Callable

import torch

from ipu_simulator import numerics
from .poptorch_core import createPoptorchError

VARIABLE = "IPU_SIMULATOR_CUSTOM_OPS"  # set by `python -m ipu.simulator --custom-ops FILE.py`

Operation = tuple[str, str, int]  # name, domain, version
Function = Callable[[list[torch.Tensor], dict[str, Any]], Any]


def _fast_gather_last_dim(inputs: list[torch.Tensor], attributes: dict[str, Any]) -> torch.Tensor:
    """Takes along the last dimension: data [..., n], indices [..., m] -> [..., m]."""
    data, indices = inputs
    return torch.gather(data, -1, indices.long())


# What comes with PopTorch, without a library to load; optimum-graphcore's DeBERTa calls it so.
_OF_POPTORCH: dict[Operation, Function] = {
    ("FastGatherLastDim", "poptorch.custom_ops", 1): _fast_gather_last_dim,
}


def run(
    operation: Operation, inputs: list[torch.Tensor], attributes: dict[str, Any], examples: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The outputs of the function for `operation`, which have the shapes and types of `examples`.

    Raises poptorch.Error where there is no such function or its outputs differ.
    """
    name, domain, version = operation
    what = f"The custom operation {domain}.{name} (version {version})"
    path = os.environ.get(VARIABLE)
    function = (_functions(path) if path else {}).get(operation) or _OF_POPTORCH.get(operation)
    if function is None:
        where = f" {path} has none for {operation!r}." if path else ""
        raise createPoptorchError(
            f"{what} is written for PopART: the simulator needs a PyTorch function in its place.{where} "
            "A file with CUSTOM_OPS = {(name, domain, version): function of (inputs, attributes)} brings it: "
            f"python -m ipu.simulator --custom-ops FILE.py SCRIPT, or {VARIABLE}=FILE.py"
        )
    outputs = function(list(inputs), dict(attributes))
    made = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    if len(made) != len(examples):
        raise createPoptorchError(
            f"{what} has {len(examples)} example_outputs, but its function returns {len(made)}"
        )
    for index, (output, example) in enumerate(zip(made, examples)):
        types = [numerics.device_dtype(tensor.dtype, integers=True) for tensor in (output, example)]
        if output.shape != example.shape or types[0] != types[1]:
            raise createPoptorchError(
                f"{what}: example_outputs[{index}] is {list(example.shape)} of {types[1]}, but its "
                f"function returns {list(output.shape)} of {types[0]}"
            )
    return made


@functools.cache
def _functions(path: str) -> dict[Operation, Function]:
    try:
        functions = runpy.run_path(path)["CUSTOM_OPS"]
    except Exception as error:
        raise createPoptorchError(f"{VARIABLE}={path}: {type(error).__name__}: {error}") from error
    if not isinstance(functions, dict) or not all(callable(function) for function in functions.values()):
        raise createPoptorchError(
            f"{VARIABLE}={path}: CUSTOM_OPS must be a dictionary of functions by (name, domain, version)"
        )
    return functions
