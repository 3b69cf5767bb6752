"""cycleCount of a call and latencies of a round trip, as the cost model predicts them."""

from __future__ import annotations

import logging

import pytest
import torch
from ipu_simulator.environment import target

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
    """A Bow has a faster clock but the same tiles: as many cycles to compute, more for transfers."""
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


def latencies(batch: int, iterations: int = 1, training: bool = True) -> tuple[list[float], object]:
    """([whole, host to IPU, compute, IPU to host], the executor) after a call."""
    options = poptorch.Options()
    options.deviceIterations(iterations)
    if poptorch.ipuHardwareIsAvailable():
        options.logCycleCount(True)
    model = Regression()
    x = torch.randn(batch * iterations, 64)
    if training:
        executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
        executor(x, x)
    else:
        executor = poptorch.inferenceModel(model, options)
        executor(x)
    found = [getattr(executor, f"get{name}Latency")() for name in ("", "HostIpu", "Compute", "IpuHost")]
    assert all(shortest == longest == average for shortest, longest, average in found)
    return [average for _, _, average in found], executor


@pytest.mark.parametrize("training", [True, False])
def test_latencies_are_those_of_the_machine(training: bool) -> None:
    (whole, to_ipu, compute, to_host), executor = latencies(4, training=training)
    assert whole == pytest.approx(to_ipu + compute + to_host) and min(to_ipu, compute, to_host) > 0
    assert compute * target().clock_hz == pytest.approx(executor.cycleCount(), abs=1)
    assert latencies(4, training=training)[0][0] == whole
    assert latencies(4096, training=training)[0][1] == pytest.approx(1024 * to_ipu)
    # Per round trip, independent of their number per call.
    assert latencies(4, iterations=8, training=training)[0][2] == pytest.approx(compute)


def test_latencies_on_the_ipu_model_are_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    (whole, to_ipu, compute, to_host), _ = latencies(4)
    assert whole == compute > 0 == to_ipu == to_host


def test_latencies_that_can_not_be_predicted_are_the_hosts(capfd: pytest.CaptureFixture[str]) -> None:
    class Failing(torch.nn.Module):
        fails = False

        def forward(self, x):
            assert not Failing.fails
            return x + 1

    executor = poptorch.inferenceModel(Failing())
    executor(torch.ones(2))
    Failing.fails = True
    assert executor.getLatency()[0] > 0
    assert "can't predict this model's latencies: AssertionError" in capfd.readouterr().err


class _Runs(torch.nn.Module):
    """A model that calls a function of a tensor and of the number of calls so far."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.layer = torch.nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.function(self.layer(x), self.calls)
        return y, poptorch.identity_loss(y, "sum")


def _predicted(function, caplog):
    """(cycles, log) of capturing a training model."""
    options = poptorch.Options().logCycleCount(True)
    model = _Runs(function)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    executor(torch.ones(2, 4))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="poptorch::python"):
        cycles = executor.cycleCount()
    return cycles, [record.getMessage() for record in caplog.records]


def test_a_capture_that_needs_values_says_so(caplog):
    on_host = poptorch.CPU(lambda x: x * float(x.detach().sum().item() > 1e9), "host")
    cycles, logged = _predicted(lambda x, calls: on_host(x), caplog)
    assert cycles > 0
    assert len(logged) == 1 and "with real weights and inputs" in logged[0]
    assert _predicted(lambda x, calls: torch.relu(x), caplog)[1] == []


def test_a_capture_that_fails_otherwise_is_not_tried_again(caplog):
    def second_time(x, calls):
        return {1: x, 3: x}[calls]  # the second call is the capture's

    with pytest.raises(poptorch.Error, match=r"can't predict this model's cycles: KeyError: 2"):
        _predicted(second_time, caplog)


def test_a_printed_tensor_is_captured_without_values(caplog):
    print_twice = lambda x, calls: poptorch.ipu_print_tensor(x, "mine") * 2  # noqa: E731 (one line)
    assert _predicted(print_twice, caplog)[1] == []
