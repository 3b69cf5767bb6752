"""PopTorch's exports besides models and options, and the side effects of importing it."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ipu

pytestmark = pytest.mark.slow

ipu.select_device("simulator")
poptorch = ipu.poptorch

DROPIN = Path(poptorch.__file__).parents[1]


def _run(script: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(DROPIN), **variables}
    environment.pop("RDMAV_FORK_SAFE", None) if "RDMAV_FORK_SAFE" not in variables else None
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )


def test_structures_flatten_and_come_back():
    Point = collections.namedtuple("Point", "x y")
    tensors = [torch.tensor(float(i)) for i in range(4)]
    structure = {"a": [tensors[0], "text"], "b": (tensors[1], Point(tensors[2], tensors[3]))}
    assert poptorch.flattenTensorStructure(structure) == tensors
    doubled = poptorch.reconstructTensorStructure(structure, (tensor * 2 for tensor in tensors))
    assert doubled == {
        "a": [tensors[0] * 2, "text"],
        "b": (tensors[1] * 2, Point(tensors[2] * 2, tensors[3] * 2)),
    }
    assert isinstance(doubled["b"][1], Point)
    texts = poptorch.reconstructTensorStructure(structure, ["new"], lambda leaf: isinstance(leaf, str))
    assert texts["a"] == [tensors[0], "new"]


def test_the_canonical_structure_orders_dictionaries():
    one, two = torch.tensor(1), torch.tensor(2)
    given = [{"a": one, "b": two}]
    assert poptorch.flattenTensorStructure(given, [{"b": None, "a": None}]) == [two, one]
    with pytest.raises(ValueError, match="Expected the keys"):
        poptorch.flattenTensorStructure(given, [{"b": None}])


def test_attributes_are_read_from_json():
    assert poptorch.accessAttributes('{"alpha": 0.5, "names": ["a"]}') == {"alpha": 0.5, "names": ["a"]}
    for wrong in (7, "attr:0", "[1]"):
        with pytest.raises(ValueError, match=r"[Aa]ttribute"):
            poptorch.accessAttributes(wrong)


def test_tensor_ids_exist_on_the_ipu_only():
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            y = x + 1
            seen.append((poptorch.getIpuTensorId(x), poptorch.getIpuTensorId(y), poptorch.getIpuTensorId(x)))
            return y

    poptorch.inferenceModel(Model())(torch.ones(2))
    first, second, again = seen[0]
    assert first == again != second
    with pytest.raises(poptorch.Error, match="getIpuTensorId"):
        poptorch.getIpuTensorId(torch.ones(2))


def test_a_module_is_printed_with_its_blocks(capsys):
    plain = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU())
    assert poptorch.module_repr(plain) == repr(plain)
    poptorch.BeginBlock(plain[1], "second", ipu_id=1)
    poptorch.print(plain)
    assert capsys.readouterr().out == (
        "Sequential(\n"
        "  (0): Linear(in_features=1, out_features=2, bias=True)\n"
        "  (1): BeginBlock(user_id=second, ipu_id=1): ReLU()\n"
        ")\n"
    )


def test_importing_prepares_the_process():
    done = _run(
        "import faulthandler, logging, os, signal, sys, json\n"
        "import poptorch\n"
        "handler = logging.getLogger('poptorch::python').handlers[0]\n"
        "print(json.dumps([os.environ['RDMAV_FORK_SAFE'], sys.excepthook is not sys.__excepthook__,\n"
        "    faulthandler.is_enabled(), faulthandler.unregister(signal.SIGTERM),\n"
        "    handler.stream is sys.stderr]))"
    )
    assert json.loads(done.stdout) == ["1", True, True, True, True], done.stderr


def test_a_variable_that_is_set_stays():
    done = _run("import os, poptorch; print(os.environ['RDMAV_FORK_SAFE'])", RDMAV_FORK_SAFE="0")
    assert done.stdout.strip() == "0"


def test_it_may_be_imported_again():
    again = """
import importlib, sys, torch, poptorch
importlib.reload(poptorch)
for name in [name for name in sys.modules if name.split(".")[0] in ("poptorch", "ipu_simulator")]:
    del sys.modules[name]
import poptorch as new
class Model(torch.nn.Module):
    def forward(self, x):
        torch.ops.poptorch.begin_ipu_block(1, 0, 1)
        return torch.ops.poptorch.nop(x) * 2
model = new.inferenceModel(Model(), new.Options().deviceIterations(2))
print(new is not poptorch, model(torch.ones(2)).tolist())
"""
    assert _run(again).stdout == "True [2.0, 2.0]\n"


def test_an_uncaught_error_is_logged_and_still_ends_the_program():
    done = _run("import poptorch\nraise KeyError('lost')")
    assert done.returncode == 1
    assert "[poptorch::python]" in done.stderr and done.stderr.count("KeyError: 'lost'") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGTERM needs POSIX")
def test_sigterm_ends_a_program_and_shows_where_it_was():
    process = subprocess.Popen(
        [sys.executable, "-c", "import poptorch, time\nprint('ready', flush=True)\ntime.sleep(600)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(DROPIN)},
    )
    try:
        assert process.stdout.readline().strip() == "ready"
        process.terminate()
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == -15
    assert "most recent call first" in errors


def test_a_star_import_replaces_no_name_of_the_program():
    """`from torchvision import models` before it stays what it was."""
    names = {"models": "torchvision's"}
    exec("from poptorch import *", names)
    assert (
        names["models"] == "torchvision's"
        and not {"executor", "blocks", "tools", "annotations"} & names.keys()
    )
    assert {"Options", "trainingModel", "DataLoader", "BeginBlock", "optim", "enums", "Error"} <= names.keys()
