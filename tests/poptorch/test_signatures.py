"""Every public name of PopTorch exists and is PopTorch's: signatures, defaults, enumerations, base classes.

poptorch_api.json holds those of PopTorch 3.4 (c2a8b177): a parameter is [name] or [name, default].
"""

from __future__ import annotations

import enum
import inspect
import json
from pathlib import Path

import pytest

import ipu

ipu.select_device("simulator")

API = json.loads((Path(__file__).parent / "poptorch_api.json").read_text())


def _room(name: str):
    module = ipu.poptorch
    for part in name.split(".")[1:]:
        module = getattr(module, part)
    return module


def _all_names() -> list:
    """(our object, PopTorch's entry) of every public name; a missing one fails the collection."""
    pairs = []
    for room in ("poptorch", "poptorch.optim", "poptorch.profiling", "poptorch.testing"):
        for name, entry in API[room].items():
            pairs.append(pytest.param(getattr(_room(room), name), entry, id=f"{room}.{name}"))
    options = ipu.poptorch.Options()
    for name, entry in API["options_namespaces"].items():
        pairs.append(pytest.param(type(getattr(options, name)), entry, id=f"Options.{name}"))
    return pairs


def _default(value):
    if isinstance(value, enum.Enum):
        return value.value
    return "<object>" if callable(value) else value


def _parameters(function) -> list:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    ours = []
    for parameter in inspect.signature(function).parameters.values():
        keyword = "kw " if parameter.kind == inspect.Parameter.KEYWORD_ONLY else ""
        entry = [keyword + stars.get(parameter.kind, "") + parameter.name]
        if parameter.default is not inspect.Parameter.empty:
            entry.append(_default(parameter.default))
        ours.append(entry)
    return ours


@pytest.mark.parametrize("ours, theirs", _all_names())
def test_same_as_poptorch(ours, theirs):
    if "members" in theirs:
        assert {member.name: member.value for member in ours} == theirs["members"]
    if "call" in theirs:
        assert _parameters(ours) == theirs["call"]
    if "init" in theirs:
        assert _parameters(ours.__init__) == theirs["init"]
    bases = [base.__name__ for base in ours.__mro__[1:]] if inspect.isclass(ours) else []
    assert set(theirs.get("bases", [])) <= set(bases)
    for name, signature in theirs.get("methods", {}).items():
        method = inspect.getattr_static(ours, name)
        if signature == "property":
            assert isinstance(method, property), name
        elif isinstance(method, staticmethod):
            assert _parameters(method.__func__) == signature, name
        else:
            assert _parameters(getattr(ours, name)) == signature, name
