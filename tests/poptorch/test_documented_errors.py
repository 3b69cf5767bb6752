"""Each public name raises the errors that its documentation names, with PopTorch's texts.

Which kinds of errors a name raises is read from its docstring: each of them is tried, and each call of the
tables raises one of them. (Options and optimizers have separate tests.)
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.poptorch import error_cases, error_cases_executor
from tests.poptorch.executor_models import poptorch

API = json.loads((Path(__file__).parent / "poptorch_api.json").read_text())
CASES = {**error_cases.CASES, **error_cases_executor.CASES}
OPTIONS = ("Options", "TensorLocationSettings")
# These need another environment: the IPU model; no PyTorch Geometric.
IN_OTHER_TESTS = {
    "ipuHardwareVersion": "test_environment.py",
    "registerGeometricCustomArgParsers": "test_custom_args.py",
}

_BUILT_IN = (
    "AssertionError AttributeError IndexError KeyError NotImplementedError RuntimeError TypeError ValueError"
)
KINDS: dict[str, type] = {"poptorch.Error": poptorch.Error}
KINDS |= {name: getattr(importlib.import_module("builtins"), name) for name in _BUILT_IN.split()}
MENTIONED = re.compile(r"\b(poptorch\.Error|[A-Z]\w*Error)\b")


def documented() -> dict[str, set[type]]:
    """The kinds of errors in the docstring of each public function, class and method ("Class.method")."""
    kinds = {}
    for room in ("poptorch", "poptorch.profiling", "poptorch.testing"):
        module = poptorch if room == "poptorch" else importlib.import_module(room)
        for name, entry in API[room].items():
            thing = getattr(module, name)
            if name in OPTIONS or (inspect.isclass(thing) and issubclass(thing, Exception)):
                continue
            kinds[name] = mentioned(thing)
            for method in entry.get("methods", ()):
                kinds[f"{name}.{method}"] = mentioned(inspect.getattr_static(thing, method))
    return kinds


def mentioned(thing: Any) -> set[type]:
    text = inspect.getdoc(getattr(thing, "fget", None) or thing) or ""
    return {KINDS[word] for word in MENTIONED.findall(text)}


DOCUMENTED = documented()


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_TARGET", "pod256")
    monkeypatch.delenv("IPU_SIMULATOR_CUSTOM_OPS", raising=False)


def raised(call: Callable[..., Any], folder: Path) -> BaseException | None:
    arguments = [folder] if "folder" in inspect.signature(call).parameters else []
    try:
        call(*arguments)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", sorted({*CASES, *(name for name, kinds in DOCUMENTED.items() if kinds)}))
def test_documented_errors(name, tmp_path):
    if name in IN_OTHER_TESTS:
        assert (Path(__file__).parent / IN_OTHER_TESTS[name]).exists()
        return
    kinds = set()
    for number, (call, text) in enumerate(CASES.get(name, ())):
        folder = tmp_path / str(number)
        folder.mkdir()
        error = raised(call, folder)
        assert type(error) in DOCUMENTED[name], f"case {number}: {error!r} isn't documented"
        assert re.search(text, str(error), re.DOTALL), f"case {number}: {error}"
        kinds.add(type(error))
    assert kinds == DOCUMENTED[name]
