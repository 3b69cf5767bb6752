"""Files that can run code when they are loaded say so."""

import poptorch
import torch


class Net(torch.nn.Module):
    def forward(self, x):
        return x + 1


def test_a_saved_executable(tmp_path, capfd):
    model = poptorch.inferenceModel(Net())
    model.compileAndExport(str(tmp_path / "net.poptorch"), torch.ones(2))
    assert "trust" not in capfd.readouterr().err
    poptorch.load(str(tmp_path / "net.poptorch"))
    assert "net.poptorch runs any code that was put into it" in capfd.readouterr().err


def test_options_from_a_file(tmp_path, capfd):
    (tmp_path / "options.conf").write_text("deviceIterations(4)\n")
    assert poptorch.Options().loadFromFile(str(tmp_path / "options.conf")).device_iterations == 4
    assert "options.conf runs as Python: load only files that you trust" in capfd.readouterr().err
