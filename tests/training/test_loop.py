"""The loop's clock: what an update takes, the wait for its data included."""

from __future__ import annotations

import os
import signal
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, List

import pytest
import torch

import config
import training
from training import LoopPlan, Progress, Speed

PLAN = replace(
    config.load("test_bert").section(LoopPlan),
    training_steps=4,
    device_iterations=1,
    micro_batch_size=2,
    gradient_accumulation=3,
    replication_factor=1,
    eval_steps=None,
    checkpoint_steps=None,
    synthetic_data=False,
)


class Clock:
    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Executor:
    """Compiles for 100 s; a call takes 2 s."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._is_compiled = clock, False

    def setOptimizer(self, optimizer: Any) -> None: ...

    def isCompiled(self) -> bool:
        return self._is_compiled

    def compile(self, *batch: torch.Tensor) -> None:
        self._clock.now_s += 100
        self._is_compiled = True

    def __call__(self, *batch: torch.Tensor) -> List[torch.Tensor]:
        self._clock.now_s += 2
        return [torch.tensor(3.0)]


def batches(clock: Clock, waits_s: List[float]) -> Iterator[List[torch.Tensor]]:
    for wait_s in waits_s:
        clock.now_s += wait_s
        yield [torch.zeros(6)]


def trained(start: Progress, waits_s: List[float], monkeypatch: pytest.MonkeyPatch) -> List[Progress]:
    """Every state of a training that had a checkpoint after each update."""
    clock = Clock()
    monkeypatch.setattr(training.loop, "time", clock)
    states: List[Progress] = []

    def save(now: Progress) -> Path:
        states.append(now)
        return Path("nowhere")

    schedule = training.Schedule(1e-3, "constant", 0, 1.0, 0.0, 4)
    training.train(
        replace(PLAN, checkpoint_steps=1),
        start,
        task=training.SQUAD,
        rng_state=None,
        executor=Executor(clock),
        optimizer=types.SimpleNamespace(param_groups=[]),
        schedule=schedule,
        batches=batches(clock, waits_s),
        evaluate=lambda stop: {},
        save=save,
        reporter=training.report.NoReporter(Path()),
        stop=training.StopRequest(),
    )
    return states


FRESH = Progress(0, {"step": 0}, evaluation_due=False, checkpoint=None)


def test_samples_per_s_has_the_wait_for_data_but_no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    states = trained(FRESH, [10, 1, 0, 4], monkeypatch)
    assert [state.record["samples_per_s"] for state in states] == [6 / 12, 6 / 3, 6 / 2, 6 / 6]


def test_the_mean_leaves_out_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    states = trained(FRESH, [10, 1, 0, 4], monkeypatch)
    assert "data_wait_fraction" not in states[0].summary(PLAN)
    summary = states[-1].summary(PLAN)
    assert (summary["samples_per_s"], summary["data_wait_fraction"]) == (18 / 11, 5 / 11)
    assert summary["loss"] == states[-1].record["loss"]


def test_the_mean_is_that_of_all_processes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = Progress(2, {"step": 2}, False, None, Speed(1, data_wait_s=1, device_s=2, samples=6))
    summary = trained(resumed, [10, 7], monkeypatch)[-1].summary(PLAN)
    assert (summary["samples_per_s"], summary["data_wait_fraction"]) == (12 / 12, 8 / 12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_a_wait_for_data_takes_effect_at_once(number: int) -> None:
    clock, saved = Clock(), []

    def endless() -> Iterator[List[torch.Tensor]]:
        yield from batches(clock, [0, 0])
        os.kill(os.getpid(), number)
        while True:
            time.sleep(0.01)

    def save(now: Progress) -> Path:
        saved.append(now.step)
        return Path("nowhere")

    with training.stop_on_signals() as stop, stop.deferred():
        end = training.train(
            PLAN,
            FRESH,
            task=training.SQUAD,
            rng_state=None,
            executor=Executor(clock),
            optimizer=types.SimpleNamespace(param_groups=[]),
            schedule=training.Schedule(1e-3, "constant", 0, 1.0, 0.0, 4),
            batches=endless(),
            evaluate=lambda stop: {},
            save=save,
            reporter=training.report.NoReporter(Path()),
            stop=stop,
        )
    assert end.step == 2 and saved == [2] and stop.signal_name == signal.Signals(number).name
