"""Tests go through public doors: no test reaches for a name of ours that begins with an underscore."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DROP_IN = ROOT / "ipu" / "simulator" / "dropin"
OURS = {path.stem for folder in (ROOT, DROP_IN) for path in folder.glob("*.py")} | {
    path.parent.name for folder in (ROOT, DROP_IN) for path in folder.glob("*/__init__.py")
}
# What programs use of PopTorch's own private names, so that the drop-in has them too.
OF_POPTORCH = set(
    "_Popart _debugGetPopartIR _validateOptions _executable_inputs _execution_strategy _values "
    "_dataloader _impl _logging _poplar_executor _utils _args_parser "
    "_throwTestError _restoreWrapperIfNecessary _OverwriteContextManager _DistributedOptions".split()
)
# Of PyTorch, Python and execnet, where they have no public name.
OF_OTHERS = {"_C", "_VF", "_dynamo", "_linalg", "_nn"} | set(
    "_actions _buffers _exit _forward_hooks _forward_pre_hooks _io _step_count _workers".split()
)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def reaches(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of each private name that is imported from us, asked of an object, or given to setattr.

    A test's own classes may keep theirs: what is asked of `self` and `cls` isn't looked at.
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in OURS]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            of_its_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if of_its_own else [node.attr]
        elif isinstance(node, ast.Call):
            function = (
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            )
            if function in ("setattr", "getattr", "delattr"):
                given = [word.value for word in node.args if isinstance(word, ast.Constant)]
                names = [word for word in given if isinstance(word, str)]
        for name in names:
            private = {part for part in name.split(".") if is_private(part)} - OF_POPTORCH - OF_OTHERS
            if private:
                yield node.lineno, name


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import poptorch._trace.run", ["poptorch._trace.run"]),
        ("from config.rules import _divisors, rules", ["config.rules._divisors"]),
        ("executor._executable._calls = None", ["_calls", "_executable"]),
        ("monkeypatch.setattr('benchmarks.trainings._LOOK_S', 1)", ["benchmarks.trainings._LOOK_S"]),
        ("from torch._subclasses import fake_tensor", []),
        ("options._Popart.set('a', 1); module.__class__; self._mine = cls._mine", []),
    ],
)
def test_what_is_a_reach(code: str, found: list[str]) -> None:
    assert [name for _, name in reaches(ast.parse(code))] == found


@pytest.mark.parametrize("file", FILES)
def test_no_test_reaches_into_us(file: str) -> None:
    found = list(reaches(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    assert not found, f"{file} reaches for private names (line, name): {found}"
