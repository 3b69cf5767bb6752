"""The files that hold compiled models: their header, what they hold, and what is refused.

What an executor saves and goes on from is tested with the executor; here stand the format and `load`'s rules.
"""

from __future__ import annotations

import zipfile

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch
files = poptorch._run.files
VERSION = poptorch._run.files.VERSION


def _contents(**changes) -> files.Contents:
    values = {
        "version": VERSION,
        "training": False,
        "options": poptorch.Options(),
        "model": torch.nn.Linear(2, 1),
    }
    return files.Contents(**{**values, **changes})


def test_what_is_written_is_read(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    options = poptorch.Options().deviceIterations(3)
    given = _contents(
        training=True, options=options, model=model, optimizer=optimizer, executable={"rng": [1, 2]}
    )
    path = files.write(str(tmp_path / "new" / "m.poptorch"), given)
    read = files.read(str(path), VERSION)
    assert torch.equal(read.model.weight, model.weight)
    assert read.optimizer.param_groups[0]["params"][0] is read.model.weight
    assert read.options.device_iterations == 3 and read.training and read.executable == {"rng": [1, 2]}
    assert poptorch.importPoptorchMetadataFromFile(str(path))["has_model"] is True
    assert [entry.name for entry in path.parent.iterdir()] == ["m.poptorch"]


def test_a_folder_gets_a_file_of_a_standard_name(tmp_path, caplog):
    path = files.write(str(tmp_path), _contents())
    assert path == tmp_path / "model.poptorch"
    assert "is a directory" in caplog.text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = files.write(str(tmp_path / "m"), _contents())
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|local object"):
        files.write(str(path), _contents(executable={"code": lambda: None}))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_load_needs_a_model(tmp_path):
    path = files.write(str(tmp_path / "m"), _contents(model=None))
    with pytest.raises(
        AssertionError, match="is a valid PopTorch file but was created with 'export_model=False'"
    ):
        poptorch.load(str(path))


def test_another_version_is_refused_before_anything_is_unpickled(tmp_path):
    path = files.write(str(tmp_path / "m"), _contents(version="2.0"))
    with zipfile.ZipFile(path) as archive:
        header = archive.read("header.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", header)
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
    path = files.write(str(tmp_path / "m"), _contents())
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in kept}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(poptorch.Error, match=r"m is not a valid PopTorch file: .*no item named"):
        poptorch.load(str(path))


def test_a_header_that_lacks_a_key_is_not_the_simulators(tmp_path):
    path = files.write(str(tmp_path / "m"), _contents())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", '{"format": "poptorch simulator executable", "version": "3.4.0"}')
    with pytest.raises(poptorch.Error, match="its header isn't the simulator's"):
        poptorch.load(str(path))
