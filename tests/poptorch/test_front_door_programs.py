"""Unmodified PopTorch programs under `python -m ipu.simulator`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.poptorch.test_front_door import door

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "foreign"
NAMES = sorted(path.stem for path in PROGRAMS.glob("*.py"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "instances"])
def test_a_foreign_program_reaches_its_goal(tmp_path, name):
    """Each program asserts its goal (losses, accuracies, shapes), and prints a line of results at the end."""
    arguments = [tmp_path] if name in ("train_validate_resume", "hugging_face_bert") else []
    out = door(PROGRAMS / f"{name}.py", *arguments, folder=tmp_path, OMP_NUM_THREADS="1").stdout
    assert out.count("\n") == 1
    if name == "replicated_async":
        assert out == "weights 1.000 -2.000 0.500\n"
    elif name == "half_precision":
        assert float(out.removeprefix("accuracy ")) > 0.9
    else:
        first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", out).groups())
        assert last < first


def test_instances_of_a_foreign_program_train_together(tmp_path):
    """torchrun instead of PopRun; it fails unless each instance exits cleanly."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = door(*launcher, PROGRAMS / "instances.py", folder=tmp_path, OMP_NUM_THREADS="1")
    assert result.stdout == "weights 0.500 0.500 0.500\n"


@pytest.mark.parametrize("name", NAMES)
def test_foreign_programs_import_nothing_of_ours(name):
    text = (PROGRAMS / f"{name}.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, flags=re.MULTILINE))
    allowed = {
        "poptorch",
        "popdist",
        "popart",
        "torch",
        "torchmetrics",
        "transformers",
        *sys.stdlib_module_names,
    }
    assert "poptorch" in imported and imported <= allowed
