"""The linters look at all of the program: nothing new stays outside their lists."""

from __future__ import annotations

from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
ROOT = Path(__file__).parents[1]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


def _importable(folder: Path) -> set[str]:
    """Modules and packages that a folder on sys.path gives."""
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return packages | {path.stem for path in folder.glob("*.py")}


PROGRAM = _importable(ROOT) - {"tests"}
DROP_IN = _importable(ROOT / "ipu" / "simulator" / "dropin")


def test_import_contracts_see_every_module():
    assert set(TOOLS["importlinter"]["root_packages"]) == PROGRAM | DROP_IN
    floors = TOOLS["importlinter"]["contracts"][0]["layers"]
    assert {name for floor in floors for name in floor.split(" | ")} == PROGRAM


def test_mypy_sees_every_module():
    # The drop-in is in ipu.
    assert {name.removesuffix(".py") for name in TOOLS["mypy"]["files"]} == PROGRAM


def test_no_contract_has_exceptions():
    assert not [name for one in TOOLS["importlinter"]["contracts"] for name in one if "ignore" in name]
