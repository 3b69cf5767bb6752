"""Each module has one name and one copy: imports are statements, and a process has one engine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Graphcore's packages may not be installed, or be the simulator's: only the choice of the device knows.
BY_STRING = {"ipu/device.py": {"poptorch", "popdist", "popdist.poptorch", "popart"}}
SOURCES = [
    path
    for path in sorted([*ROOT.rglob("*.py"), ROOT / "dev"])
    if not {".venv", "tests", "output", "cache", "build"} & set(path.relative_to(ROOT).parts)
]


def imported_by_string(tree: ast.AST) -> set[str]:
    """Names that calls of import functions give as text; "..." where the name is computed."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        argument = node.args[0] if node.args else None
        text = argument.value if isinstance(argument, ast.Constant) else None
        if function in ("import_module", "__import__", "run_module"):
            found.add(text if isinstance(text, str) else "...")
        elif function in ("exec", "eval") and isinstance(text, str) and "import" in text.split():
            found.add(text)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_by_string(path):
    name = str(path.relative_to(ROOT))
    assert imported_by_string(ast.parse(path.read_text(encoding="utf-8"))) <= BY_STRING.get(name, set())


@pytest.mark.parametrize(
    "text",
    [
        "importlib.import_module('torch')",
        "import_module(name)",
        "__import__('os')",
        "exec('import os')",
        "runpy.run_module('planning')",
    ],
)
def test_an_import_by_string_is_found(text):
    assert imported_by_string(ast.parse(text))


def test_each_noun_of_the_glossary_is_carried_by_one_class():
    """Only PopTorch's Stage, which programs use, shares a name."""
    prescribed = {("Stage", "ipu/simulator/dropin/poptorch/_options/strategies.py")}
    glossary = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Glossary")[1]
    carried = set(re.findall(r"`([A-Z]\w+)` in `([\w/.]+)`", glossary))
    assert len(carried) > 10
    defined = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                defined.add((node.name, str(path.relative_to(ROOT))))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                defined.add((node.targets[0].id, str(path.relative_to(ROOT))))
    nouns = {name for name, _ in carried}
    assert {(name, path) for name, path in defined - prescribed if name in nouns} == carried


def test_application_and_drop_in_share_one_engine():
    """Whichever is imported first."""
    program = """
import sys
import ipu
ipu.select_device("simulator")
import poptorch.simulator
from planning import dry_run
from ipu_simulator.cost.verdict import Verdict
assert dry_run.Verdict is Verdict is poptorch.simulator.Verdict
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print(len([file for file in files if file.endswith("cost/verdict.py")]))
"""
    for text in (program, program.replace("import ipu\n", "import ipu, planning\n")):
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize("package", ["data", "model"])
def test_no_name_of_an_interface_is_that_of_a_module(package):
    """Both packages import their interface at its first use; an imported module would hide the name."""
    modules = {path.stem for path in (ROOT / package).iterdir()}
    tree = ast.parse((ROOT / package / "interface.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    names = {alias.name for node in imports for alias in node.names}
    assert names and not names & modules
