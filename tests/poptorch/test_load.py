"""poptorch.load: a saved executor resumes without recompilation."""

from __future__ import annotations

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x, target):
        return torch.nn.functional.mse_loss(self.layer(x), target)


def _trained(tmp_path):
    torch.manual_seed(0)
    model = Regression()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    executor = poptorch.trainingModel(model, poptorch.Options().randomSeed(4), optimizer)
    inputs = torch.randn(4, 3), torch.randn(4, 1)
    executor(*inputs)
    path = str(tmp_path / "saved.poptorch")
    executor.save(path)
    return executor, inputs, path


def test_training_goes_on_from_a_file(tmp_path):
    executor, inputs, path = _trained(tmp_path)
    loaded = poptorch.load(path)
    assert isinstance(loaded, poptorch.PoplarExecutor) and loaded.isCompiled()
    for _ in range(3):
        assert torch.equal(loaded(*inputs), executor(*inputs))
    assert torch.equal(loaded.model.layer.weight, executor.model.layer.weight)
    with pytest.raises(poptorch.Error, match="Shape mismatch for x"):
        loaded(torch.zeros(2, 3), torch.zeros(2, 1))


def test_options_can_be_edited_on_the_way(tmp_path):
    _, _, path = _trained(tmp_path)
    loaded = poptorch.load(path, edit_opts_fn=lambda options: options.modelName("again"))
    assert loaded.options.model_name == "again"


def test_what_was_compiled_for_an_offline_target_runs_here(tmp_path):
    layer = torch.nn.Linear(3, 2)
    path, inputs = str(tmp_path / "offline.poptorch"), torch.randn(4, 3)
    offline = poptorch.inferenceModel(layer, poptorch.Options().useOfflineIpuTarget())
    offline.compileAndExport(path, inputs)
    loaded = poptorch.load(path)
    assert not loaded.options.exists("ipu_version")
    assert loaded.options.connection_type == poptorch.ConnectionType.Always.value
    assert torch.equal(loaded(inputs), layer(inputs))
