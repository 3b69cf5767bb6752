"""Neither a capture nor training imports torch's compiler, which takes a second, and both leave it usable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
CAPTURE = """
import sys
import torch
import poptorch
import poptorch.simulator

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(30, 16)
        self.line = torch.nn.Linear(16, 30)

    def forward(self, ids, labels):
        logits = self.line(self.words(ids) + 1)
        return logits, poptorch.identity_loss((logits - labels[:, None]).abs().mean(), "none")

with poptorch.simulator.without_memory():
    model = Model()
    inputs = (torch.zeros(4, dtype=torch.int32), torch.zeros(4))
inputs = tuple(torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in inputs)
optimizer = poptorch.optim.AdamW(model.parameters())
graph = poptorch.simulator.capture(model, inputs, {}, poptorch.Options(), True)
assert [op.name for op in graph.ops if op.phase == "forward"].count("addmm") == 1
print("torch._dynamo" in sys.modules)

class Importing(Model):
    def forward(self, ids, labels):
        if imports:
            import torch._dynamo
        return super().forward(ids, labels)

imports = False
model = Importing()
optimizer = poptorch.optim.AdamW(model.parameters())
executor = poptorch.trainingModel(model, optimizer=optimizer)
executor(*inputs)
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
executor(*inputs)
executor.destroy()
print("torch._dynamo" in sys.modules)
imports = True  # for the first time where Tensor.__new__ is patched
poptorch.trainingModel(model, optimizer=optimizer)(*inputs)
import torch._dynamo
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def test_a_capture_and_training_import_no_compiler_which_can_be_imported_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CAPTURE],
        env={"PYTHONPATH": str(ROOT / "ipu/simulator/dropin"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "2.0"]
