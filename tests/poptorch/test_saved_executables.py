"""save, compileAndExport, loadExecutable and poptorch.load: a run resumes as if never interrupted."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import (
    CLASSES,
    FEATURES,
    Classifier,
    batch,
    clones,
    options,
    poptorch,
    same,
)


class WithDropout(torch.nn.Module):
    forwards = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, CLASSES)
        )

    def forward(self, x, y):
        WithDropout.forwards += 1
        logits = self.layers(x)
        return {"logits": logits, "loss": torch.nn.functional.cross_entropy(logits, y)}


def _trainer(seed: int = 3):
    model = WithDropout()
    return poptorch.trainingModel(
        model, options(accumulation=2, seed=seed), poptorch.optim.AdamW(model.parameters(), lr=0.1)
    )


def test_a_loaded_run_goes_on_bit_for_bit(tmp_path):
    whole = _trainer()
    for step in range(4):
        last = whole(*batch(4, seed=step))
    first = _trainer()
    for step in range(2):
        first(*batch(4, seed=step))
    path = str(tmp_path / "new" / "run.poptorch")
    first.save(path)
    before = WithDropout.forwards
    second = poptorch.load(path)
    assert second.isCompiled()
    assert WithDropout.forwards == before
    for step in range(2, 4):
        output = second(*batch(4, seed=step))
    assert torch.equal(output["logits"], last["logits"])
    assert same(clones(second.model), clones(whole.model))
    assert second._debugGetPopartIR() == whole._debugGetPopartIR()


def test_without_its_random_state_a_loaded_run_draws_from_the_start(tmp_path):
    path = str(tmp_path / "run.poptorch")
    executor = _trainer()
    executor(*batch(4))
    executor.save(path, save_rng_state=False)
    assert poptorch.load(path).rng_state == [3, 0]
    executor.save(path)
    assert poptorch.load(path).rng_state == [3, 1]


def test_an_executable_without_its_model_is_for_a_model_at_hand(tmp_path):
    path = str(tmp_path / "run.poptorch")
    x, _ = batch(2)
    poptorch.inferenceModel(Classifier()).compileAndExport(path, x, export_model=False)
    with pytest.raises(AssertionError, match="was created with 'export_model=False'"):
        poptorch.load(path)
    model = Classifier(seed=9)
    executor = poptorch.inferenceModel(model)
    executor.loadExecutable(path)
    torch.testing.assert_close(executor(x), model(x))
    with pytest.raises(poptorch.Error, match="Shape mismatch for x"):
        executor(batch(3)[0])
    with pytest.raises(AssertionError, match="compiled already"):
        executor.loadExecutable(path)


def test_an_offline_target_exports_and_a_device_runs_it(tmp_path):
    path = str(tmp_path / "run.poptorch")
    x, _ = batch(2)
    model = Classifier()
    poptorch.inferenceModel(model, options().useOfflineIpuTarget()).compileAndExport(path, x)
    torch.testing.assert_close(poptorch.load(path)(x), model(x))


def test_executables_for_something_else_are_refused(tmp_path):
    path = str(tmp_path / "run.poptorch")
    poptorch.trainingModel(Classifier(), options()).compileAndExport(path, *batch(2))
    with pytest.raises(poptorch.Error, match="an executable for training, this model is for inference"):
        poptorch.inferenceModel(Classifier()).loadExecutable(path)
    with pytest.raises(poptorch.Error, match="compiled for other weights"):
        poptorch.trainingModel(WithDropout(), options()).loadExecutable(path)
    with pytest.raises(poptorch.Error, match="compiled for other counts of micro batches"):
        poptorch.trainingModel(Classifier(), options(replicas=2)).loadExecutable(path)


def test_a_cache_folder_gets_one_file_for_each_program(tmp_path):
    for classes in (3, 3, 4):
        made = options().enableExecutableCaching(str(tmp_path / "cache"))
        poptorch.inferenceModel(torch.nn.Linear(4, classes), made).compile(torch.ones(2, 4))
    found = list((tmp_path / "cache").iterdir())
    assert len(found) == 2 and {path.suffix for path in found} == {".popef"}


def test_a_model_that_cannot_be_pickled_is_saved_without_it(tmp_path):
    class Local(Classifier):
        pass

    def hooked(hook):
        model = Classifier()
        model.first.register_forward_hook(hook)
        return model

    x, _ = batch(2)
    for model in (Local(), hooked(lambda module, inputs, output: output)):
        path = tmp_path / "run.poptorch"
        executor = poptorch.inferenceModel(model)
        executor.compile(x)
        with pytest.raises(poptorch.Error, match=r"can't be pickled .* export_model=False"):
            executor.save(str(path))
        assert not list(tmp_path.iterdir())
        executor.save(str(path), export_model=False)
        loaded = poptorch.inferenceModel(model)
        loaded.loadExecutable(str(path))
        torch.testing.assert_close(loaded(x), model(x))
        path.unlink()
