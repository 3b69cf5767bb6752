"""What PopTorch compiles, from supported.json: operations that it lacks, and arguments that it refuses."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import torch
from ipu_simulator import variables
from ipu_simulator.graph.operations import schema_of

from .._run.structure import tensors
from .call_table import row_of

_FILE = Path(__file__).with_name("supported.json")
# Values of `label_smoothing`, `dilation` and the like are compared element by element.
_Condition = Mapping[str, Any]
_NOT_GIVEN = object()
# Why a value can't be read.
NO_VALUES = "aten::item is only supported in eager mode, but was called while the model was traced."


@functools.cache
def table() -> Mapping[str, Any]:
    """The file, as it is."""
    read: Mapping[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return read


def _without_overload(name: str) -> str:
    name = name.partition(".")[0]
    return name if name.endswith("__") else name.removesuffix("_")


@functools.cache
def _compiled() -> frozenset[str]:
    names = frozenset(_without_overload(name) for name in table()["handled"] + table()["kept_whole"])
    known = names | {name for name, parts in table()["becomes"].items() if names.issuperset(parts)}
    # Some parts are themselves composite: fill, zero.
    return known | {name for name, parts in table()["becomes"].items() if known.issuperset(parts)}


def missing(func: Any, call: str) -> list[str]:
    """The operations that PopTorch lacks of those that a dispatched one (torch._ops.OpOverload) is for it.

    :param call: name of the function that the program called.
    """
    if func.namespace != "aten":
        return _missing_of_library(func)
    name = schema_of(func).name
    if name in _compiled() or name in table()["parts"].get(call, ()):
        return []
    return [f"aten::{part}" for part in table()["becomes"].get(name, [name]) if part not in _compiled()]


def _missing_of_library(func: Any) -> list[str]:
    """The same for an operation of a library: PyTorch's decomposition of it, if any, is dispatched later."""
    name = f"{func.namespace}::{func.overloadpacket.__name__}"
    has_parts = any(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
        for key in ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
    )
    known = func.namespace in ("poptorch", "prim", "prims", "profiler") or name in table()["libraries"]
    return [] if known or has_parts else [name]


def always_reads_values(module: str) -> bool:
    """Whether a module of PyTorch reads values in PopTorch's PyTorch too."""
    return module in table()["reading_modules"]


def refused_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why PopTorch refuses a call of torch with these arguments; None if it doesn't."""
    rows = row_of(func).refused
    return _refusal(func.__name__, rows, _arguments(func, args, kwargs)) if rows else None


def refused_operation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why PopTorch refuses a dispatched operation with these arguments; None if it doesn't."""
    name = schema_of(func).name
    rows = table()["restricted_operations"].get(name)
    return None if rows is None else _refusal(name, rows, _named(func._schema, args, kwargs))


def unsupported(names: Iterable[str]) -> str:
    """PopTorch's text for operations that it lacks."""
    return (
        f"Unsupported ops found in compiled model: [{', '.join(names)}]. Not all operations are supported by "
        "PopTorch: use others, or compute this on the host."
    )


def _refusal(name: str, rows: Sequence[_Condition], given: Mapping[str, Any]) -> str | None:
    for row in rows:
        if (row.get("strictly") and not _is_strict(row, given)) or not _applies(row, given):
            continue
        if "reads" in row:
            return NO_VALUES
        if "becomes" in row:
            return unsupported([f"aten::{row['becomes']}"])
        named = [*row.get("if", ()), *row.get("if_not", ())]
        shown = [f"{key}={_shown(given[key])}" for key in named if key in given]
        what = f" with {', '.join(shown)}" if shown else ""
        why = f": {row['why']}" if "why" in row else ""
        return f"aten::{name}{what} is unsupported{why}."
    return None


def _is_strict(row: _Condition, given: Mapping[str, Any]) -> bool:
    """Whether a row about newer PyTorch counts: if it is asked for, and this PyTorch has the arguments."""
    return variables.strict() and given.keys() >= {*row.get("if", ()), *row.get("if_not", ())}


def _applies(row: _Condition, given: Mapping[str, Any]) -> bool:
    if any(not _is(given.get(key, _NOT_GIVEN), value) for key, value in row.get("if", {}).items()):
        return False
    if any(_is(given.get(key, _NOT_GIVEN), value) for key, value in row.get("if_not", {}).items()):
        return False
    if "labels" in row and given[row["labels"]].is_floating_point():
        return False
    found = tensors(list(given.values()))
    if "type" in row and not any(str(tensor.dtype) == f"torch.{row['type']}" for tensor in found):
        return False
    return "factors" not in row or not _enlarges_by_whole_factors(given)


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_is(value, one) for one in wanted)
    if isinstance(value, (list, tuple)):
        return all(_is(one, wanted) for one in value)
    if value is None or wanted is None or isinstance(value, (bool, torch.Tensor)):
        return value is wanted
    return bool(value == wanted) and not isinstance(wanted, bool)


def _enlarges_by_whole_factors(given: Mapping[str, Any]) -> bool:
    """Of an upsampling's arguments, whose size is `output_size` or `scale_factors`."""
    image = given.get("self", given.get("input"))
    assert isinstance(image, torch.Tensor)
    scales = given.get("scale_factors") or [given.get("scales_h"), given.get("scales_w")]
    size = given.get("output_size") or [int(old * scale) for old, scale in zip(image.shape[2:], scales)]
    whole = all(new % old == 0 for new, old in zip(size, image.shape[2:]))
    return whole and all(scale is None or float(scale).is_integer() for scale in scales)


def _shown(value: Any) -> str:
    return f"a tensor of {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """A call's arguments by name; those of PyTorch's built-in functions as their operation names them."""
    if inspect.isfunction(func):
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments
    packet = getattr(torch.ops.aten, func.__name__, None)
    for overload in packet.overloads() if packet is not None else ():
        schema = getattr(packet, overload)._schema
        types = [str(argument.type) for argument in schema.arguments]
        flags = zip(args, types)
        if len(args) <= len(types) and all(isinstance(arg, bool) == (one == "bool") for arg, one in flags):
            return _named(schema, args, kwargs)
    return {}


def _named(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    names = [argument.name for argument in schema.arguments]
    defaults = {one.name: one.default_value for one in schema.arguments if one.has_default_value()}
    return {**defaults, **dict(zip(names, args)), **kwargs}
