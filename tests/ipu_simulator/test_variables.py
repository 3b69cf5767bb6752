"""Environment variables are read in one module; errors name those with bad values."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ipu_simulator
import pytest
from ipu_simulator import variables

DROP_IN = Path(ipu_simulator.__file__).parents[1]
ROOT = Path(__file__).resolve().parents[2]
# Hands the whole environment on to the program; PopRun's variables, which popdist answers about.
MAY_TOUCH = {"ipu_simulator/variables.py", "ipu_simulator/command.py", "popdist/__init__.py"}
WRITING = ("setdefault", "pop", "update", "putenv", "unsetenv")


def test_no_other_module_touches_the_environment():
    touching = {
        str(path.relative_to(DROP_IN))
        for path in DROP_IN.rglob("*.py")
        if "environ" in path.read_text().replace("environment", "")
    }
    assert touching == MAY_TOUCH


def writes(path: Path) -> set[str]:
    """The variables that a file sets or removes in os.environ; "..." where the name is computed."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        name = None
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            name, where = node.slice, node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in WRITING and node.args:
            name, where = node.args[0], node.func.value
        if name is not None and ast.unparse(where) in ("os.environ", "environ", "os"):
            found.add(name.value if isinstance(name, ast.Constant) else "...")
    return found


def test_the_environment_is_written_for_other_processes_and_libraries_only():
    allowed = {
        "data/make_shards.py": {"TOKENIZERS_PARALLELISM"},  # read by the tokenizers library, in Rust
        "data/prepare.py": {"TOKENIZERS_PARALLELISM"},
        "ipu/device.py": {"POPTORCH_IPU_MODEL"},  # read by Graphcore's PopTorch, in C++
        "ipu/simulator/dropin/ipu_simulator/variables.py": {"..."},  # set_for_children
    }
    rooms = "benchmarks config data ipu model planning training".split()
    files = [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): written for path in files if (written := writes(path))}
    assert found == allowed


def test_names_for_children_are_those_that_another_process_reads():
    """The docstring of set_for_children says which, and why."""
    calls = set()
    for path in DROP_IN.rglob("*.py"):
        calls |= set(re.findall(r"set_for_children\((?:\w+\.)?\"?(\w+)\"?,", path.read_text()))
    assert calls == {"PROFILE", "CUSTOM_OPS", "ANNOUNCED", "RDMAV_FORK_SAFE", "WAIT_POLICY"}
    for name in calls:
        assert getattr(variables, name, name) in variables.set_for_children.__doc__


@pytest.mark.parametrize("value", ["two", "-1", "1.5", " 1"])
def test_what_is_no_whole_number_is_named(monkeypatch, value):
    monkeypatch.setenv("RANK", value)
    with pytest.raises(ValueError, match=f"RANK is {value!r}; a whole number from 0 on is expected"):
        variables.whole_number(variables.RANK, 0)


def test_empty_is_not_set(monkeypatch):
    monkeypatch.setenv("RANK", "")
    assert variables.whole_number(variables.RANK, 3) == 3
    monkeypatch.setenv(variables.PROFILE, "")
    assert variables.profile_folder() is None


@pytest.mark.parametrize(
    ("value", "asked"), [("1", True), ("10", True), ("0", False), ("", False), ("on", False)]
)
def test_the_ipu_model_is_asked_for_by_a_number(monkeypatch, value, asked):
    monkeypatch.delenv("POPTORCH_SMALL_IPU_MODEL", raising=False)
    monkeypatch.setenv("POPTORCH_IPU_MODEL", value)
    assert variables.asks_for_ipu_model() is asked
