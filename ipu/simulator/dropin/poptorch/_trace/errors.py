"""Errors that a forward raises: the program's line, the operation and the module are added to them.

- PopTorch's errors name the line already; the rest follows their text, as in PopTorch's "Error raised in:".
- Other errors keep their class and get a note below the traceback (before Python 3.11: a log line).
- After the compilation, shapes and types are fixed, so an operation can only fail because of values (an index
  out of range): it ends in a poptorch.Error. An IPU checks no values.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from typing import Any, Iterator, NamedTuple

import torch

from .. import poptorch_core
from .._logging import logger
from . import Call, callers

# The error of an operation that the host has no memory for.
_NO_MEMORY = "DefaultCPUAllocator"
# Attributes that errors get: the operation's name, the origin.
_OPERATION, ORIGIN = "operation_in_forward", "origin_in_forward"


class Origin(NamedTuple):
    """Where an error comes from, as far as it is known.

    `place`: FILE:LINE; `module`: its path ("" is the model) or class; `program`: the program's FILE:LINE if
    the place is in a library newer than PopTorch.
    """

    place: str | None = None
    operation: str | None = None
    module: str | None = None
    program: str | None = None

    def __str__(self) -> str:
        parts = [
            f"at {self.place}" if self.place else "",
            f"by {self.operation}" if self.operation else "",
            f"in {self._module_text}" if self.module is not None else "",
            f"called at {self.program}" if self.program else "",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def _module_text(self) -> str:
        return f"module {self.module}" if self.module else "the model itself"

    def stack(self) -> str:
        """As the end of a PopTorch error."""
        texts = [self.operation, self._module_text if self.module is not None else None, self.program]
        known = [text for text in texts if text]
        lines = [f"  [{number}] {text}" for number, text in enumerate(known)]
        return "\n".join(["\nError raised in:", *lines]) if lines else ""


UNKNOWN = Origin()


def on_call(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listener for calls (watch.py): tells an error which operation it comes from."""
    try:
        return proceed(func, args, kwargs)
    except Exception as error:
        setattr(error, _OPERATION, operation_name(func))
        raise


def operation_name(func: Any) -> str:
    """An operation as programs write it: the operation of poptorch that calls it, or torch's function."""
    name = callers.poptorch_operation() or torch.overrides.resolve_name(func)
    return name or str(getattr(func, "__name__", func))


@contextlib.contextmanager
def explained(model: torch.nn.Module, compiling: bool) -> Iterator[None]:
    """Context of a forward: errors get their origin. See `explain`."""
    try:
        yield
    except Exception as error:
        explain(error, _origin(error, model), compiling)
        raise


def explain(error: Exception, origin: Origin, compiling: bool = False) -> None:
    """Adds the origin to an error. Raises poptorch.Error instead if an operation of a compiled model refuses
    values.
    """
    if isinstance(error, poptorch_core.Error) and error.type != poptorch_core.PYTHON_LAYER:
        _complete(error, origin)
    elif not compiling and origin.operation and is_about_values(error):
        raise _about_values(error, origin) from error
    else:
        _add_note(error, origin)


def _complete(error: poptorch_core.Error, origin: Origin) -> None:
    if not error.location:
        error.location = origin.stack()
        error.args = (f"{error}{error.location}",)


def is_about_values(error: Exception) -> bool:
    """Whether an error of an operation may be about its operands' values, if shapes and types are right."""
    return isinstance(error, (IndexError, RuntimeError)) and _NO_MEMORY not in str(error)


def _about_values(error: Exception, origin: Origin) -> poptorch_core.Error:
    """The error that replaces PyTorch's."""
    what = f"{origin.operation}, in {origin._module_text}" if origin.module is not None else origin.operation
    text = str(error).rstrip(".")
    return poptorch_core.createBackendError(
        f"{what}: {text}. Compilation doesn't see values; PyTorch refuses those of this run. An IPU checks "
        "no values: out of range, it would use other data without an error.",
        "poplar_application_runtime_error",
        origin.place,
    )


def _add_note(error: BaseException, origin: Origin) -> None:
    """Adds its origin to an error of another class, as a note; before Python 3.11, as a log line."""
    if not origin.place:
        return
    setattr(error, ORIGIN, origin)
    text = f"in the model's forward, {origin}"
    if sys.version_info >= (3, 11):
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)
    else:
        logger.error("%s: %s", text, error)


def _origin(error: Exception, model: torch.nn.Module) -> Origin:
    paths = {id(module): path for path, module in model.named_modules()}
    place = module = program = of_poptorch = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if callers.is_programs(frame):
            place, of_poptorch = callers.place_of(frame, line), None
            program = program if callers.is_library(frame) else place
        of_poptorch = of_poptorch or callers.operation_of(frame)
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module):
            module = paths.get(id(owner), type(owner).__name__)
    operation = getattr(error, _OPERATION, of_poptorch)
    return Origin(place, operation, module, None if program == place else program)
