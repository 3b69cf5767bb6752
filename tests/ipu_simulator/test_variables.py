"""Environment variables are read in one module, and a bad value is named."""

from __future__ import annotations

from pathlib import Path

import ipu_simulator
import pytest
from ipu_simulator import variables

DROP_IN = Path(ipu_simulator.__file__).parents[1]
# Hands the whole environment on to the program; PopRun's variables, which popdist answers about.
MAY_TOUCH = {"ipu_simulator/variables.py", "ipu_simulator/command.py", "popdist/__init__.py"}


def test_no_other_module_touches_the_environment():
    touching = {
        str(path.relative_to(DROP_IN))
        for path in DROP_IN.rglob("*.py")
        if "environ" in path.read_text().replace("environment", "")
    }
    assert touching == MAY_TOUCH


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
