"""The loop's clock: what an update takes, the wait for its data included."""

from __future__ import annotations

import os
import signal
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import pytest
import torch

import config
import ipu
import training
from data import DataError
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


class Two(ipu.Instances):
    """One of two instances; `others` says how often the other one has no reason to stop before it has one."""

    def __init__(self, others: int = 10**9) -> None:
        super().__init__(1, 2)
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "others", others)

    asked: List[float]
    others: int

    def sum(self, values: Sequence[float]) -> List[float]:
        self.asked.extend(values)
        return [value + float(len(self.asked) > self.others) for value in values]

    def gather(self, tensors: Sequence[torch.Tensor]) -> List[List[torch.Tensor]]:
        return [list(tensors)] * 2


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    """Four held-out examples, of which the third may be damaged."""

    def __init__(self, is_damaged: bool) -> None:
        self._is_damaged = is_damaged

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> torch.Tensor:
        if self._is_damaged and number >= 2:
            raise DataError("'a.shard' ends at byte 1000")
        return torch.zeros(1)


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class Gathered:
    def add(self, outputs: Sequence[torch.Tensor]) -> None: ...

    def result(self) -> Dict[str, float]:
        return {"eval_loss": 1.0}


@pytest.mark.parametrize("eval_steps", [2, None])  # after the second update, or the last
@pytest.mark.parametrize("is_here", [True, False])
def test_damage_in_an_evaluation_stops_all_instances_after_they_saved(
    eval_steps: Optional[int], is_here: bool
) -> None:
    ipu.select_device("simulator")
    saved: List[Progress] = []
    updates = eval_steps or PLAN.training_steps
    # Each asks before each update, before the evaluation, and before each of its two batches.
    instances = Two(10**9 if is_here else updates + 2)
    options = ipu.poptorch.Options()
    evaluate = training.build_evaluator(
        Doubled(),
        None,
        options,
        lambda multiple: Rows(is_here),
        micro_batch_size=1,
        max_batches=None,
        collate=lambda rows: [torch.stack(rows)],
        metrics=Gathered,
        instances=instances,
    )

    def save(now: Progress) -> Path:
        saved.append(now)
        return Path("step_of_the_run")

    stop = training.StopRequest()

    def run() -> Progress:
        with stop.deferred():
            return training.train(
                replace(PLAN, eval_steps=eval_steps),
                FRESH,
                task=training.SQUAD,
                rng_state=None,
                executor=Executor(Clock()),
                optimizer=types.SimpleNamespace(param_groups=[]),
                schedule=training.Schedule(1e-3, "constant", 0, 1.0, 0.0, 4),
                batches=batches(Clock(), [0] * 4),
                evaluate=evaluate,
                save=save,
                reporter=training.report.NoReporter(Path()),
                stop=stop,
                instances=instances,
            )

    if is_here:
        said = f"byte 1000\nThe run stopped after step {updates}; .*step_of_the_run"
        with pytest.raises(DataError, match=said):
            run()
    else:
        assert run().step == updates
    assert stop and [(now.step, now.evaluation_due) for now in saved] == [(updates, True)]
    # Both asked equally often: each question is one message to the other instance.
    assert len(instances.asked) == updates + 4 - (eval_steps is None)
