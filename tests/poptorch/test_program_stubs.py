"""The stubs of docs/programs/graphcore.md let a program in the manner of Graphcore's applications run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "programs" / "graphcore.md"
PROGRAM = """
import ctypes
import horovod.torch as hvd
import popdist
import poptorch
import torch
from examples_utils import load_lib

hvd.init()
load_lib("custom_ops.cpp")
ctypes.cdll.LoadLibrary("./custom_ops.so")

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x, y):
        logits = self.layer(x)
        return logits, poptorch.identity_loss(torch.nn.functional.cross_entropy(logits, y), reduction="none")

torch.manual_seed(1)
model = Model()
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
options = poptorch.Options().deviceIterations(2)
training = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
seed = hvd.broadcast(torch.tensor([3]), root_rank=0, name="seed")
losses = [training(torch.ones(4, 4), torch.zeros(4, dtype=torch.long))[1].mean() for _ in range(3)]
assert losses[2] < losses[0] and hvd.size() == 1 and hvd.rank() == 0 and seed.item() == 3
print("loss", float(hvd.allreduce(losses[2])))
"""


def stub(name: str) -> str:
    """The code block after the stub's name in the page."""
    found = re.search(
        rf"`stubs/{re.escape(name)}`\s+is\n\n((?:    .*\n|\n)+)", PAGE.read_text(encoding="utf-8")
    )
    assert found is not None, name
    return "\n".join(line[4:] for line in found[1].splitlines())


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_program_in_the_manner_of_graphcores_runs(tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    for name in ("horovod/torch.py", "examples_utils/__init__.py"):
        (stubs / name).parent.mkdir(parents=True)
        (stubs / name).write_text(stub(name))
    (stubs / "horovod" / "__init__.py").touch()
    (build,) = re.findall(r"^    (echo \| cc .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    subprocess.run(["sh", "-c", build], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(stubs), str(ROOT)))}
    command = [sys.executable, "-m", "ipu.simulator", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.startswith("loss "), done.stderr
