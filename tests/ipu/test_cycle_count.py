"""cycleCount: predicted by the cost model, of a whole call."""

from __future__ import annotations

import pytest
import torch

import ipu

ipu.select_device("simulator")
import poptorch  # noqa: E402


class Regression(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x, target=None):
        y = self.layer(x)
        return y if target is None else (y, poptorch.identity_loss((y - target).square().mean(), "none"))


def cycles(batch: int = 4, iterations: int = 1, training: bool = True) -> int:
    options = poptorch.Options()
    options.logCycleCount(True)
    options.deviceIterations(iterations)
    model = Regression()
    x = torch.randn(batch * iterations, 64)
    if not training:
        executor = poptorch.inferenceModel(model, options)
        executor(x)
        return executor.cycleCount()
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
    executor(x, x)
    first = executor.cycleCount()
    executor(x, x)
    assert executor.cycleCount() == first, "a program takes the same cycles each time"
    return first


def test_cycles_follow_the_work() -> None:
    assert isinstance(cycles(), int) and cycles() > 0
    assert cycles(batch=65536) > cycles(batch=4)
    assert cycles(iterations=3) == pytest.approx(3 * cycles(), rel=1e-6, abs=3)
    assert 0 < cycles(training=False) < cycles()


def test_cycles_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Bow's clock is faster and its tiles are the same: what doesn't depend on seconds stays."""
    slow = cycles(batch=65536)
    monkeypatch.setenv("IPU_SIMULATOR_TARGET", "bow-pod16")
    assert cycles(batch=65536) >= slow


def test_counting_is_neither_seen_nor_fatal(capsys: pytest.CaptureFixture[str]) -> None:
    class Telling(torch.nn.Module):
        fails = False

        def forward(self, x):
            print("telling")
            assert not Telling.fails
            return x + 1

    options = poptorch.Options()
    options.logCycleCount(True)
    for fails in (False, True):
        executor = poptorch.inferenceModel(Telling(), options)
        executor(torch.ones(2))
        Telling.fails = fails
        if fails:
            with pytest.raises(poptorch.Error, match="can't predict this model's cycles: AssertionError"):
                executor.cycleCount()
        else:
            assert executor.cycleCount() > 0
        assert capsys.readouterr().out == "telling\n"
