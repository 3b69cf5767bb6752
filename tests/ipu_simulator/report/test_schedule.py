"""The drawn pipeline, checked against the rules of pipelining."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from ipu_simulator.cost.pipeline import cycle_s, cycles_s, full_cycle
from ipu_simulator.cost.verdict import Pipeline, StageTime, Verdict
from ipu_simulator.report.schedule import Schedule, schedule_of, work_of
from ipu_simulator.report.sums import busy_s

from tests.ipu_simulator.report.samples import fitting


def pipelined(stage_ipus: tuple[int, ...], micro_batches: int, *, trained: bool = True) -> Verdict:
    """Stages with different times, on these IPUs."""
    return program(stage_ipus, micro_batches, (2 if trained else 1) * (len(stage_ipus) - 1), trained)


def program(stage_ipus: tuple[int, ...], micro_batches: int, depth: int, trained: bool = True) -> Verdict:
    """`depth`: pipeline cycles minus micro batches; 0 if stages take turns."""
    stages = tuple(
        StageTime(
            stage,
            ipu,
            forward_s=1e-3 * (stage + 1),
            recompute_s=0.5e-3 if trained and stage < len(stage_ipus) - 1 else 0.0,
            backward_s=2e-3 * (stage + 1) if trained else 0.0,
            stash_s=0.1e-3 if trained else 0.0,
            copies_s=0.2e-3,
            copies_back_s=0.05e-3 if trained else 0.0,
        )
        for stage, ipu in enumerate(stage_ipus)
    )
    verdict = fitting()
    ipus = tuple(replace(verdict.ipus[0], ipu=ipu) for ipu in range(1 + max(stage_ipus)))
    cycles = micro_batches + depth
    work = work_of(stages)
    if depth:
        full_s = cycle_s(work, full_cycle(len(stages), trained), 0.0)
        all_s = cycles_s(work, micro_batches, trained, 0.0)
    else:
        full_s = sum(busy_s(stage) for stage in stages)
        all_s = micro_batches * full_s
    pipeline = Pipeline(len(stages), cycles, full_s, 1 - micro_batches / cycles, all_s)
    return replace(
        verdict, ipus=ipus, pipeline=pipeline, details=replace(verdict.details, stages=stages, liveness=())
    )


def visits(plan: Schedule, part: str) -> dict[int, dict[int, int]]:
    """Micro batch -> stage -> the cycle in which the stage works on it; asserts that there is only one."""
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for slice_ in plan.slices:
        if slice_.part == part:
            assert slice_.stage not in found[slice_.micro_batch]
            found[slice_.micro_batch][slice_.stage] = slice_.cycle
    return found


PLACEMENTS = [(0,), (0, 1), (0, 1, 2, 3, 0), (0, 1, 0, 1)]


@pytest.mark.parametrize("stage_ipus", PLACEMENTS)
def test_every_micro_batch_passes_every_stage_in_order(stage_ipus: tuple[int, ...]) -> None:
    micro_batches = 5
    plan = schedule_of(pipelined(stage_ipus, micro_batches))
    assert not plan.omitted
    forward, backward = visits(plan, "forward"), visits(plan, "backward")
    stages = range(len(stage_ipus))
    for micro_batch in range(micro_batches):
        cycles = [forward[micro_batch][stage] for stage in stages]
        cycles += [backward[micro_batch][stage] for stage in reversed(stages)]
        # The last stage runs forward and backward in one cycle; every other step takes one more cycle.
        steps = [after - before for before, after in pairwise(cycles)]
        assert steps == [0 if step == len(stages) - 1 else 1 for step in range(len(steps))]
    assert sorted(forward) == list(range(micro_batches))
    assert [cycle.index for cycle in plan.cycles] == list(range(micro_batches + 2 * len(stages) - 2))


def test_a_stage_holds_as_many_micro_batches_as_it_has_stash_slots() -> None:
    plan = schedule_of(pipelined((0, 1, 2, 3, 0), 12))
    assert not plan.omitted
    forward, backward = visits(plan, "forward"), visits(plan, "backward")
    for stage in range(5):
        most = max(
            sum(forward[batch][stage] <= cycle <= backward[batch][stage] for batch in forward)
            for cycle in range(20)
        )
        assert most == 2 * (5 - 1 - stage) + 1


@pytest.mark.parametrize("stage_ipus", PLACEMENTS)
def test_an_ipu_does_one_thing_at_a_time_within_the_cycle(stage_ipus: tuple[int, ...]) -> None:
    verdict = pipelined(stage_ipus, 40)
    plan = schedule_of(verdict)
    starts_s = {cycle.index: cycle.start_s for cycle in plan.cycles}
    assert plan.omitted * verdict.pipeline.cycle_s + plan.cycles_end_s == pytest.approx(
        verdict.pipeline.cycles_s
    )
    for ipu in set(stage_ipus):
        slices = sorted((each for each in plan.slices if each.ipu == ipu), key=lambda each: each.start_s)
        for before, after in pairwise(slices):
            assert before.start_s + before.duration_s <= after.start_s + 1e-12
        for each in slices:
            assert starts_s[each.cycle] <= each.start_s
            end_s = each.start_s + each.duration_s
            assert end_s <= starts_s.get(each.cycle + 1, plan.cycles_end_s) + 1e-12


def test_work_is_conserved() -> None:
    plan = schedule_of(pipelined((0, 1, 2, 0), 5))
    seconds: Counter[str] = Counter()
    for slice_ in plan.slices:
        seconds[slice_.part] += slice_.duration_s
    assert seconds["forward"] == pytest.approx(5 * (1 + 2 + 3 + 4) * 1e-3)
    assert seconds["backward"] == pytest.approx(5 * 2 * (1 + 2 + 3 + 4) * 1e-3)
    assert seconds["recompute"] == pytest.approx(5 * 3 * 0.5e-3)


def test_cycles_left_out_are_those_that_look_like_their_neighbours() -> None:
    every, few = schedule_of(pipelined((0, 1, 2, 0), 9)), schedule_of(pipelined((0, 1, 2, 0), 1000))
    assert every.omitted == 0
    assert few.omitted + len(few.cycles) == 1000 + 6

    def shape(plan: Schedule, cycle: int) -> list[tuple[object, ...]]:
        return [
            (each.ipu, each.stage, each.part, each.duration_s) for each in plan.slices if each.cycle == cycle
        ]

    for from_start in range(8):
        assert shape(few, from_start) == shape(every, from_start)
        assert shape(few, 1005 - from_start) == shape(every, 14 - from_start)
    gap = next(cycle for cycle in few.cycles if cycle.start_s == few.gap_s)
    assert gap.phase == "main"
    assert gap.index == few.omitted + few.cycles.index(gap)


def test_inference_drains_without_coming_back() -> None:
    plan = schedule_of(pipelined((0, 1, 2), 6, trained=False))
    assert [cycle.index for cycle in plan.cycles] == list(range(8))
    forward = visits(plan, "forward")
    assert forward == {batch: {stage: batch + stage for stage in range(3)} for batch in range(6)}
    assert {each.part for each in plan.slices} == {"forward", "copies"}


@pytest.mark.parametrize(("micro_batches", "omitted"), [(12, 0), (13, 0), (14, 2), (15, 3)])
def test_a_single_cycle_is_never_left_out(micro_batches: int, omitted: int) -> None:
    """Of five stages eight cycles fill and eight empty the pipeline, and two beside each are drawn."""
    plan = schedule_of(pipelined((0, 1, 2, 3, 4), micro_batches))
    assert (plan.omitted, plan.gap_s is None) == (omitted, omitted == 0)


def test_cycles_take_turns_evenly_where_stages_do() -> None:
    """Without a pipeline a cycle is one micro batch through all stages, even where an IPU has several."""
    verdict = program((0, 1, 0, 1), 30, depth=0)
    cycles = schedule_of(verdict).cycles
    drawn = [after.start_s - before.start_s for before, after in pairwise(cycles)]
    assert drawn == pytest.approx([verdict.pipeline.cycle_s] * len(drawn))


def test_without_a_pipeline_stages_take_turns() -> None:
    verdict = program((0, 1, 2), 40, depth=0)
    plan = schedule_of(verdict)
    assert {cycle.phase for cycle in plan.cycles} == {"main"}
    for cycle in plan.cycles:
        slices = [each for each in plan.slices if each.cycle == cycle.index]
        assert {each.micro_batch for each in slices} == {cycle.index, -1}
        worked = [(each.part, each.stage) for each in slices if each.part in ("forward", "backward")]
        forth, back = [("forward", stage) for stage in range(3)], [("backward", stage) for stage in range(3)]
        assert worked == forth + back[::-1]
        slices.sort(key=lambda each: each.start_s)
        for before, after in pairwise(slices):
            assert after.start_s == pytest.approx(before.start_s + before.duration_s)
        end_s = slices[-1].start_s + slices[-1].duration_s
        assert end_s == pytest.approx(cycle.start_s + verdict.pipeline.cycle_s)


def test_the_update_follows_the_last_cycle() -> None:
    verdict = fitting()
    plan = schedule_of(verdict)
    left_out_s = plan.omitted * verdict.pipeline.cycle_s
    assert plan.cycles_end_s == pytest.approx(verdict.pipeline.cycles_s - left_out_s)
    assert [part.name for part in plan.after][-1] == "host input and output"
    assert plan.end_s - plan.cycles_end_s == pytest.approx(verdict.update_s + verdict.host_s)
