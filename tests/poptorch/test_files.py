"""Executable files: header, contents and errors of the format, and `load`.

Saving and resuming an executor is tested in test_saved_executables.py.
"""

from __future__ import annotations

import io
import json
import zipfile

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


class _Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x):
        return poptorch.identity_loss(self.weight * x, "mean")


X = torch.ones(3, 2)  # as many rows as device iterations


def _written(filename, model=None, export_model=True) -> None:
    """A file with an executor for training."""
    model = model or _Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    executor = poptorch.trainingModel(model, poptorch.Options().deviceIterations(3), optimizer)
    executor.compileAndExport(str(filename), X, export_model=export_model)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "m.poptorch"
    _written(path)
    assert poptorch.importPoptorchMetadataFromFile(str(path))["has_model"] is True
    assert [entry.name for entry in path.parent.iterdir()] == ["m.poptorch"]
    read = poptorch.load(str(path))
    assert read.options.device_iterations == 3
    before = read.model.weight.clone()
    assert torch.equal(before, torch.tensor([2.0, 3.0]))
    read(X)
    # The optimizer is in the file too, and refers to the model's weights.
    assert torch.equal(read.model.weight, before - 3 * 0.25 * torch.tensor([0.5, 0.5]))


def test_a_folder_gets_a_file_of_a_standard_name(tmp_path, caplog):
    _written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.poptorch"]
    assert "is a directory" in caplog.text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m"
    _written(path)
    before = path.read_bytes()
    model = _Scaled()
    model.cannot_be_pickled = lambda: None
    with pytest.raises(Exception, match=r"pickle|local object"):
        _written(path, model)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_load_needs_a_model(tmp_path):
    path = tmp_path / "m"
    _written(path, export_model=False)
    with pytest.raises(
        AssertionError, match="is a valid PopTorch file but was created with 'export_model=False'"
    ):
        poptorch.load(str(path))


def test_another_version_is_refused_before_anything_is_unpickled(tmp_path):
    path = tmp_path / "m"
    _written(path)
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps({**header, "version": "2.0"}))
        archive.writestr("contents.pt", b"no pickle")
    with pytest.raises(
        AssertionError, match=r"PopTorch version mismatch: File was created with version: 2\.0"
    ):
        poptorch.load(str(path))


def test_other_files_are_refused(tmp_path):
    text, archive = tmp_path / "text", tmp_path / "archive"
    text.write_text("weights")
    torch.save({"a": 1}, archive)
    for path in (text, archive):
        with pytest.raises(poptorch.Error, match="not a valid PopTorch file"):
            poptorch.load(str(path))
    with pytest.raises(FileNotFoundError):
        poptorch.load(str(tmp_path / "missing"))


@pytest.mark.parametrize("kept", [("header.json",), ("contents.pt",)])
def test_a_file_that_lacks_a_part_is_named(tmp_path, kept):
    path = tmp_path / "m"
    _written(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in kept}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(poptorch.Error, match=r"m is not a valid PopTorch file: .*no item named"):
        poptorch.load(str(path))


def test_a_header_that_lacks_a_key_is_not_the_simulators(tmp_path):
    path = tmp_path / "m"
    _written(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", '{"format": "poptorch simulator executable", "version": "3.4.0"}')
    with pytest.raises(poptorch.Error, match="its header isn't the simulator's"):
        poptorch.load(str(path))


def test_an_executable_of_another_simulator_is_compiled_again(tmp_path):
    path = tmp_path / "m"
    _written(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    contents = torch.load(io.BytesIO(parts["contents.pt"]), weights_only=False)
    del contents["executable"]["num_ipus"]
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, "contents.pt": buffer.getvalue()}.items():
            archive.writestr(name, content)
    with pytest.raises(poptorch.Error, match="another version of the simulator, without num_ipus: compile"):
        poptorch.load(str(path))
