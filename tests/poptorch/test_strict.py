"""IPU_SIMULATOR_STRICT=1: what PyTorch 2.0.1, PopTorch's version, doesn't have is refused."""

from __future__ import annotations

import runpy

import pytest
import torch
import torch.nn.functional as F

from tests.poptorch.executor_models import poptorch

X = torch.arange(16.0).reshape(1, 4, 4) / 8

# (name, call, what 2.0.1 lacks)
NEWER = [
    ("rms_norm", lambda x: F.rms_norm(x, (4,)), "function"),
    ("RMSNorm", lambda x: torch.nn.RMSNorm(4, elementwise_affine=False)(x), "function"),
    ("lp_pool3d", lambda x: F.lp_pool3d(x[None], 2, 1), "function"),
    ("scale", lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.5), "argument"),
    (
        "enable_gqa",
        lambda x: F.scaled_dot_product_attention(*[x[None]] * 3, enable_gqa=True),
        "argument",
    ),
    ("weight", lambda x: F.mse_loss(x, x + 1, weight=torch.ones_like(x)), "argument"),
]
SAME = [
    lambda x: F.scaled_dot_product_attention(x, x, x) + x @ x + torch.bmm(x, x),
    lambda x: F.scaled_dot_product_attention(x, x, x, None, 0.0, False),
    lambda x: F.mse_loss(x, x + 1) + F.l1_loss(x, x + 1),
    lambda x: torch.addmm(x[0], x[0], x[0]) + torch.baddbmm(x, x, x),
]


class Runs(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def run(function):
    return poptorch.inferenceModel(Runs(function))(X)


@pytest.fixture(params=["0", "1"])
def strict(request, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", request.param)
    return request.param == "1"


@pytest.mark.skipif(torch.__version__ < "2.13", reason="this PyTorch doesn't have all of them either")
@pytest.mark.parametrize(("name", "function", "what"), NEWER, ids=[case[0] for case in NEWER])
def test_what_poptorchs_pytorch_lacks(strict, name, function, what):
    if not strict:
        torch.testing.assert_close(run(function), function(X))
        return
    text = f"unsupported: torch 2.0.1, PopTorch's version, has no such {what}"
    with pytest.raises(poptorch.Error, match=rf"(?s)test_strict\.py:\d+: .*{text}"):
        run(function)


@pytest.mark.parametrize("function", SAME)
def test_what_both_have(strict, function):
    torch.testing.assert_close(run(function), function(X))


@pytest.mark.skipif(torch.__version__ < "2.4", reason="this PyTorch has no rms_norm")
def test_libraries_newer_than_poptorch_too(strict, tmp_path):
    path = tmp_path / "layers.py"
    path.write_text("import torch\ndef call(x):\n    return torch.nn.functional.rms_norm(x, (4,))\n")
    call = runpy.run_path(str(path), run_name="transformers.layers")["call"]
    if strict:
        with pytest.raises(poptorch.Error, match="has no such function"):
            run(call)
    else:
        torch.testing.assert_close(run(call), call(X))
