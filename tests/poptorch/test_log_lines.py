"""The drop-in's output while programs run: warnings, their repetition, printed tensors."""

import fcntl
import hashlib
import logging
import threading

import pytest
import torch

from tests.poptorch.executor_models import poptorch

LOGGER = logging.getLogger("poptorch::python")


@pytest.fixture
def said(monkeypatch):
    """The logged texts."""
    texts = []
    (handler,) = (handler for handler in LOGGER.handlers if handler.filters)
    monkeypatch.setattr(handler, "emit", lambda record: texts.append(record.getMessage()))
    return texts


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)

    def forward(self, x):
        y = self.fc(x)
        return poptorch.identity_loss(y, "mean")


@pytest.mark.parametrize(("most", "times"), [(2, 2), (None, 6)])
def test_repeated_lines_are_limited(said, most, times):
    executor = poptorch.inferenceModel(Linear(), poptorch.Options().maxRepeatLogs(most))
    executor.compile(torch.ones(1, 2))
    for _ in range(6):
        executor.compile(torch.ones(1, 2))
    lines = [text for text in said if "Call to compile() ignored" in text]
    assert len(lines) == times
    assert [("not shown from now on" in line) for line in lines] == [False] * (times - 1) + [most is not None]


def test_a_tensor_made_without_a_device_is_warned_of_once(said):
    class Model(torch.nn.Module):
        def forward(self, x, names_device):
            device = x.device if names_device else None
            return x + torch.zeros(2, device=device) + torch.zeros(2, device=device)

    poptorch.inferenceModel(Model())(torch.ones(1, 2), False)
    assert sum("No device set in torch.zeros()" in text for text in said) == 1
    said.clear()
    poptorch.inferenceModel(Model())(torch.ones(1, 2), True)
    assert said == []


def test_ipu_print_tensor_prints_in_each_run(capfd):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x):
            y = poptorch.ipu_print_tensor(self.weight * x, "product", digits=1, open_bracket="<")
            return poptorch.identity_loss(y, "sum")

    model = Model()
    executor = poptorch.trainingModel(model, None, poptorch.optim.SGD(model.parameters(), lr=0.0))
    executor.compile(torch.tensor([3.0, 4.0]))
    assert "product" not in capfd.readouterr().err
    for _ in range(2):
        executor(torch.tensor([3.0, 4.0]))
        assert capfd.readouterr().err == "product: <3.0, 8.0)\nGradient___product: <1.0, 1.0)\n"
    # On the CPU it is silent.
    Model()(torch.tensor([3.0, 4.0]))
    assert capfd.readouterr().err == ""


def compiled_by_one_of_two(options):
    """Compiles as the first of two processes."""
    options.Distributed.configureProcessId(0, 2)
    poptorch.inferenceModel(Linear(), options).compile(torch.ones(1, 2))


def test_processes_that_share_a_cache_take_turns(tmp_path):
    """The compile lock, a file named after the model, is held by another process."""
    folder = tmp_path / "cache"
    folder.mkdir()
    name = hashlib.md5(repr(Linear()).encode()).hexdigest()
    options = poptorch.Options().enableExecutableCaching(str(folder))
    with (folder / f"{name}.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=compiled_by_one_of_two, args=(options,))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()
    assert len(list(folder.glob("*.popef"))) == 1


def test_processes_without_a_cache_are_warned(said):
    compiled_by_one_of_two(poptorch.Options())
    assert "enableExecutableCaching" in said[0]


class Own(poptorch.optim.SGD):
    """A subclass; `Owned` is an indirect one, `Plain` one of PyTorch's."""


class Owned(Own):
    pass


class Plain(torch.optim.AdamW):
    pass


@pytest.mark.parametrize(("kind", "rule"), [(Own, "SGD"), (Owned, "SGD"), (Plain, "AdamW")])
def test_a_subclassed_optimizer_is_warned_of_once(said, kind, rule):
    model = Linear()
    optimizer = kind(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor.setOptimizer(optimizer)
    assert said == [
        f"Optimizer `{kind.__name__}` subclassed from classes in poptorch.optim or torch.optim are unlikely "
        f"to behave as intended. The device runs the update rule of {rule}, and no step()."
    ]


@pytest.mark.parametrize("room", [torch.optim, poptorch.optim])
def test_other_optimizers_are_not_warned_of(said, room):
    for name in ("SGD", "Adam", "AdamW", "RMSprop"):
        model = Linear()
        poptorch.trainingModel(model, optimizer=getattr(room, name)(model.parameters(), lr=0.1))
    model = Linear()
    poptorch.trainingModel(model, optimizer=poptorch.optim.LAMB(model.parameters(), lr=0.1))
    assert said == []
