"""PopTorch's environment variables, which are read when needed."""

from __future__ import annotations

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("version", ["ipu1", "ipu2", "ipu21"])
def test_ipu_models_that_exist(monkeypatch, version):
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    monkeypatch.setenv("POPTORCH_IPU_MODEL_VERSION", version)
    assert torch.equal(poptorch.inferenceModel(Double())(torch.ones(2)), torch.full((2,), 2.0))
    assert not poptorch.ipuHardwareIsAvailable()


def test_other_ipu_models_are_refused_where_one_is_used(monkeypatch):
    monkeypatch.setenv("POPTORCH_IPU_MODEL_VERSION", "ipu3")
    assert poptorch.inferenceModel(Double())(torch.ones(2)).sum() == 4
    model = poptorch.inferenceModel(Double(), poptorch.Options().useIpuModel(True))
    with pytest.raises(
        poptorch.Error, match=r"Invalid IPU model version\. Valid versions: ipu1, ipu2, ipu21\."
    ):
        model(torch.ones(2))


@pytest.mark.parametrize("variable", ["POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL"])
def test_there_is_no_hardware_behind_an_ipu_model(monkeypatch, variable):
    assert poptorch.ipuHardwareVersion() == 2
    monkeypatch.setenv(variable, "1")
    with pytest.raises(AssertionError, match="No IPU hardware available on this system"):
        poptorch.ipuHardwareVersion()
    assert poptorch.poptorch_core.ipuHardwareVersion() == 0


def test_cache_folder_and_default_options(monkeypatch):
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "/some/cache")
    monkeypatch.setenv(
        "POPTORCH_DEFAULT_OPTIONS", '{"outputMode": "OutputMode.Sum", "Training.gradientAccumulation": 3}'
    )
    options = poptorch.Options()
    assert options._Popart.options["cachePath"] == "/some/cache"
    assert options._Popart.options["enableEngineCaching"] is True
    assert options.output_mode == poptorch.OutputMode.Sum
    assert options.Training.gradient_accumulation == 3


def test_processes_come_from_openmpi(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    distributed = poptorch.Options().Distributed
    assert (distributed.processId, distributed.numProcesses) == (3, 4)
    monkeypatch.setenv("MY_SIZE", "2")
    monkeypatch.setenv("MY_RANK", "1")
    distributed.setEnvVarNames("MY_SIZE", "MY_RANK")
    assert (distributed.processId, distributed.numProcesses) == (1, 2)
    assert distributed.disable().numProcesses == 1


def test_the_ipu_model_has_no_replicas(monkeypatch):
    options = poptorch.Options().replicationFactor(2)
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    with pytest.raises(poptorch.Error, match="not supported on the IPU model: replicationFactor is 2"):
        poptorch.inferenceModel(Double(), options)(torch.ones(2))
