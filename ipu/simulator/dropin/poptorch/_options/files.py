"""Options from a file of setter calls and from JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import enums

if TYPE_CHECKING:
    from ..options import Options


class ConfigFileError(Exception):
    """A line of an options file isn't a setter call."""


def apply_file(options: Options, filepath: str) -> None:
    """Executes each line of the file as `options.<line>`."""
    import poptorch

    path = Path(filepath)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        call = line.strip()
        if not call or call.startswith("#"):
            continue
        try:
            code = compile(f"options.{call}", str(path), "exec")
        except SyntaxError as error:
            detail = f"SyntaxError at line {number} of {path.name}: {error.msg}\n> {call}"
            raise ConfigFileError(detail) from error
        exec(code, {"options": options, "poptorch": poptorch})


def apply_json(options: Options, text: str) -> None:
    """Calls the setter that each dotted key names; a list's elements are separate arguments."""
    for dotted, value in json.loads(text).items():
        setter: Any = options
        for name in dotted.split("."):
            setter = getattr(setter, name)
        arguments = value if isinstance(value, list) else [value]
        setter(*(_enumeration(argument) for argument in arguments))


def _enumeration(value: Any) -> Any:
    """ "OutputMode.All" as the enumeration's member; anything else as it is."""
    if isinstance(value, str) and value.count(".") == 1:
        class_name, member = value.split(".")
        if class_name in enums.__all__:
            return getattr(enums, class_name)[member]
    return value
