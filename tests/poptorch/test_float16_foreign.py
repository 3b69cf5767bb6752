"""IPU_SIMULATOR_PRECISION for a foreign program, under `python -m ipu.simulator` and on the drop-in alone."""

from __future__ import annotations

import textwrap

import pytest

from tests.poptorch.test_front_door import DOOR, DROP_IN, door

pytestmark = pytest.mark.slow

PROGRAM = """
    import poptorch, torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((4,), 300.0).half())

        def forward(self, x):
            product = self.weight * x
            return product, poptorch.identity_loss(product.float().mean(), "sum")

    model = Model()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1e-3))
    print(executor(torch.full((4,), 300.0).half())[0].tolist())
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def test_a_program_computes_as_it_is_told(tmp_path, script):
    plain = door(script, folder=tmp_path)
    assert plain.stdout == "[inf, inf, inf, inf]\n"
    as_ipu = door(script, folder=tmp_path, IPU_SIMULATOR_PRECISION="ipu-float16")
    assert as_ipu.stdout == "[65504.0, 65504.0, 65504.0, 65504.0]\n"
    assert as_ipu.stderr.splitlines()[0].endswith("with its float16 numerics")
    alone = door(
        script, folder=tmp_path, by=(), PYTHONPATH=str(DROP_IN), IPU_SIMULATOR_PRECISION="ipu-float16"
    )
    assert alone.stdout == as_ipu.stdout


def test_an_unknown_precision_is_refused_with_the_legal_ones(tmp_path, script):
    refused = door(script, folder=tmp_path, status=2, by=(DOOR,), IPU_SIMULATOR_PRECISION="float16")
    assert "IPU_SIMULATOR_PRECISION is 'float16'" in refused.stderr
    assert "float32, float32-onednn, ipu-float16" in refused.stderr
    assert "Traceback" not in refused.stderr
