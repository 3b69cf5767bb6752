"""A call's arguments: bound to the forward's parameters, and checked against those of the compilation."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .._logging import logger
from ..poptorch_core import createPoptorchError
from .structure import check_types, expanded, map_leaves, tensor_paths, tensors, with_tensors

if TYPE_CHECKING:
    from ..options import Options

_HOW_TO_RECOMPILE = (
    "\nThis error occurred because the inputs passed at runtime don't match the inputs used to compile the "
    "model."
    "\nTo recompile the model for the new inputs create a new inferenceModel / trainingModel wrapper or call "
    "destroy() on the curent one and try again."
)


@dataclass(frozen=True)
class _TensorSpec:
    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class Arguments:
    """One call's arguments, with omitted ones whose defaults hold tensors; `names` of the positional ones,
    `defaults` of the other omitted ones.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    defaults: dict[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in order."""
        return tensors((self.args, self.kwargs))

    @property
    def paths(self) -> list[tuple[Any, ...]]:
        """Each tensor's path of names and keys; passing by position or keyword makes no difference."""
        named = [*zip(self.names, self.args), *self.kwargs.items()]
        return [path for name, value in named for path in tensor_paths(value, (name,))]

    def replaced(self, replacements: list[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with their tensors replaced, in order."""
        args, kwargs = with_tensors((self.args, self.kwargs), replacements)
        return args, kwargs

    def frozen(self) -> FrozenArguments:
        """Their shapes, dtypes, structure and plain values, to compare later calls with."""
        return FrozenArguments(
            _specs(expanded(self.args)), _specs(expanded(self.kwargs)), self.names, self.defaults
        )


def _parameters(forward: Any) -> list[inspect.Parameter]:
    """A forward's parameters; those of a TorchScript forward come from its schema."""
    schema = getattr(forward, "schema", None)
    if schema is None:
        return list(inspect.signature(forward).parameters.values())
    named = schema.arguments[1:]  # without self
    return [
        inspect.Parameter(
            argument.name,
            inspect.Parameter.KEYWORD_ONLY
            if argument.kwarg_only
            else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=argument.default_value if argument.has_default_value() else inspect.Parameter.empty,
        )
        for argument in named
    ]


class ArgumentParser:
    """Binds a call's arguments to a forward's parameters."""

    def __init__(self, forward: Any) -> None:
        parameters = _parameters(forward)
        self._named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self._takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self._takes_any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._warned_of: set[str] = set()

    def parse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Binds arguments as Python would, with PopTorch's errors, and detaches their tensors.

        A default that holds a tensor is an input like an argument, so that a later call can pass another.

        Raises AssertionError for an argument too many, an unknown keyword, and an argument given twice;
        poptorch.Error for a missing argument, and for a tensor that is empty, complex, sparse or not on the
        CPU.
        """
        positional = self.positional
        names = [p.name for p in self._named]
        assert len(args) <= len(positional) or self._takes_more, (
            f"Too many arguments provided: expected {positional} ({len(positional)}) but got {len(args)}"
        )
        for name in kwargs:
            assert name in names or self._takes_any_keyword, (
                f"{name} is not a valid parameter.Allowed values are {names}"
            )
            assert name not in positional[: len(args)], f"Parameter {name} was passed more than once"
        for parameter in self._named:
            passed = parameter.name in kwargs or parameter.name in positional[: len(args)]
            if not passed and parameter.default is parameter.empty:
                raise createPoptorchError(f"Mandatory parameter {parameter.name} missing")
        args, kwargs = self._with_tensor_defaults(args, kwargs)
        more = tuple(f"args[{i}]" for i in range(len(args) - len(positional)))
        if any(isinstance(leaf, dict) for leaf in (*args, *kwargs.values())):
            self._warn_once("Dictionaries as inputs are passed in the order of their keys.")
        check_types((args, kwargs), "An argument")
        ready = map_leaves((tuple(args), dict(kwargs)), self._ready)
        given = {*positional[: len(args)], *kwargs}
        defaults = {p.name: p.default for p in self._named if p.name not in given}
        return Arguments(ready[0], ready[1], tuple(positional[: len(args)]) + more, defaults)

    def _with_tensor_defaults(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, and the omitted parameters' defaults that hold tensors."""
        given = {*self.positional[: len(args)], *kwargs}
        omitted = [p for p in self._named if p.name not in given and tensors(p.default)]
        # Python accepts these by position only, so those before them are passed too.
        last = max((self._named.index(p) for p in omitted if p.kind is p.POSITIONAL_ONLY), default=-1)
        args = (*args, *(p.default for p in self._named[len(args) : last + 1]))
        more = {p.name: p.default for p in omitted if p.kind is not p.POSITIONAL_ONLY}
        return args, {**kwargs, **more}

    @property
    def positional(self) -> list[str]:
        """The names of the parameters that can be passed by position, in order."""
        return [p.name for p in self._named if p.kind is not p.KEYWORD_ONLY]

    def _ready(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.numel() == 0:
            raise createPoptorchError(f"Zero-sized tensors are unsupported (Got shape {list(leaf.shape)}).")
        if leaf.is_complex() or leaf.layout is not torch.strided or leaf.device.type != "cpu":
            raise createPoptorchError(
                "Input tensors must be dense, real and on the CPU: got "
                f"{leaf.dtype}, {leaf.layout}, on {leaf.device}."
            )
        if leaf.requires_grad:
            self._warn_once("Input tensors have requires_grad set; they are detached from their graph.")
        if not leaf.is_contiguous():
            self._warn_once("Input tensors aren't contiguous; they are copied into contiguous ones.")
        return leaf.detach()

    def _warn_once(self, text: str) -> None:
        if text not in self._warned_of:
            self._warned_of.add(text)
            logger.warning(text)


def check_batch_dimension(arguments: Arguments, options: Options, gradient_accumulation: int) -> None:
    """Raises AssertionError unless every tensor's first dimension can be split into micro batches, and
    poptorch.Error if a count in the options is below 1.
    """
    counts = {
        "deviceIterations": options.device_iterations,
        "replicationFactor": options.replication_factor,
        "Training.gradientAccumulation": gradient_accumulation,
    }
    for name, count in counts.items():
        if count < 1:
            raise createPoptorchError(f"poptorch.Options().{name} must be at least 1: it is {count}.")
    groups = options.replication_factor // options.input_group_size
    slices = options.device_iterations * groups * gradient_accumulation
    for tensor in arguments.tensors:
        batch = tensor.shape[0] if tensor.dim() else 1
        assert batch % slices == 0, (
            f"Invalid batch dimension: In the input {tensor.shape}, the batch dimension ({batch}) must be a "
            f"multiple of Options.deviceIterations({options.device_iterations}) * "
            f"(Options.replicationFactor({options.replication_factor}) / "
            f"Options.inputReplicaGrouping.input_group_size({options.input_group_size})) * "
            f"Options.Training.gradientAccumulation({gradient_accumulation}) = {slices} "
            "because it is cut into one micro batch for each of them."
        )


@dataclass(frozen=True)
class CompiledCall:
    """The arguments that an executable was compiled for; tensors are on the meta device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class FrozenArguments:
    """The shapes, dtypes, structure and plain values that the executable was compiled for."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    defaults: dict[str, Any]

    def as_call(self, order: list[str]) -> CompiledCall:
        """The arguments as a call, with those named in `order` passed by position."""
        given = {**dict(zip(self.names, self.args)), **self.kwargs}
        # A forward's *args ("args[0]", ...) keep their positions.
        positional = [name for name in order if name in given]
        positional += [name for name in self.names if name not in positional]
        kwargs = {name: value for name, value in given.items() if name not in positional}
        return CompiledCall(*_as_tensors((tuple(given[name] for name in positional), kwargs)))

    def check(self, given: Arguments) -> None:
        """Raises poptorch.Error if a call differs; passing by position or keyword makes no difference."""
        if given.names != self.names or given.kwargs.keys() != self.kwargs.keys():
            expected = {**dict(zip(self.names, self.args)), **self.kwargs, **self.defaults}
            values = dict(zip(given.names, expanded(given.args)))
            values.update(expanded(given.kwargs), **given.defaults)
            if expected.keys() == values.keys():
                return _compare("keyword arguments", expected, values)
        if len(given.args) != len(self.args):
            _mismatch(
                "Number of positional arguments mismatch: "
                f"expected {len(self.args)} arguments but got {len(given.args)}."
            )
        for name, expected, value in zip(self.names, self.args, expanded(given.args)):
            _compare(name, expected, value)
        _compare("keyword arguments", self.kwargs, expanded(given.kwargs))


def _specs(structure: Any) -> Any:
    return map_leaves(
        structure,
        lambda leaf: _TensorSpec(leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf,
    )


def _as_tensors(structure: Any) -> Any:
    return map_leaves(
        structure,
        lambda leaf: (
            torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
            if isinstance(leaf, _TensorSpec)
            else leaf
        ),
    )


def _mismatch(text: str) -> None:
    raise createPoptorchError(text + _HOW_TO_RECOMPILE)


def _compare(name: str, expected: Any, value: Any) -> None:
    if isinstance(expected, _TensorSpec):
        if not isinstance(value, torch.Tensor):
            _mismatch(f"Type mismatch for {name}: expected Tensor but got {type(value).__name__}.")
        if value.shape != expected.shape:
            _mismatch(f"Shape mismatch for {name}: expected {expected.shape} but got {value.shape}.")
        if value.dtype != expected.dtype:
            _mismatch(f"Data type mismatch for {name}: expected {expected.dtype} but got {value.dtype}.")
    elif type(value) is not type(expected):
        _mismatch(
            f"Type mismatch for {name}: expected {type(expected).__name__} but got {type(value).__name__}."
        )
    elif isinstance(expected, (tuple, list)):
        if len(value) != len(expected):
            _mismatch(f"Length mismatch for {name}: expected {len(expected)} but got {len(value)}.")
        for i, (part, part_value) in enumerate(zip(expected, value)):
            _compare(f"{name}[{i}]", part, part_value)
    elif isinstance(expected, dict):
        unexpected, missing = set(value) - set(expected), set(expected) - set(value)
        if unexpected or missing:
            texts = []
            if unexpected:
                texts.append(f"Unexpected arguments: {', '.join(sorted(map(str, unexpected)))}.")
            if missing:
                texts.append(f"Missing arguments: {', '.join(sorted(map(str, missing)))}.")
            _mismatch(f"Keys mismatch for {name}: {' '.join(texts)}")
        for key, part in expected.items():
            _compare(f"{name}[{key!r}]" if name != "keyword arguments" else key, part, value[key])
    elif value is not expected and value != expected:
        _mismatch(f"Value mismatch for {name}: expected {expected} but got {value}.")
