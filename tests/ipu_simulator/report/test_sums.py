"""Sums of cycles by cause."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ipu_simulator.cost.verdict import Pipeline, StageTime, Verdict, Work
from ipu_simulator.report import sums

from tests.ipu_simulator.report.samples import LAYERS, fitting


def with_work(*work: Work) -> Verdict:
    verdict = fitting()
    return replace(verdict, details=replace(verdict.details, work=work))


def test_shares_are_of_all_ipus_and_of_the_busiest() -> None:
    # IPU 1 is the busiest of the sample's.
    shares = sums.by_kind(
        with_work(
            Work(0, 0, "forward", "a", "mm", "matmul", 300.0, 1, 0),
            Work(1, 1, "forward", "b", "mm", "matmul", 100.0, 1, 0),
            Work(1, 1, "backward", "c", "gelu", "elementwise", 100.0, 1, 0),
        )
    )
    assert [(share.name, share.of_all, share.of_busiest) for share in shares] == [
        ("matmul", 0.8, 0.5),
        ("elementwise", 0.2, 0.5),
    ]


def test_repeated_layers_are_summed_and_nothing_else() -> None:
    shares = sums.by_module(
        with_work(
            Work(0, 0, "forward", "layers.0.a", "mm", "matmul", 1.0, 1, 0),
            Work(0, 0, "forward", "layers.11.a", "mm", "matmul", 2.0, 1, 0),
            Work(0, 0, "forward", "layer2.a", "mm", "matmul", 5.0, 1, 0),
            Work(0, 0, "forward", "", "mm", "matmul", 1.0, 1, 0),
        )
    )
    assert {share.name: share.cycles for share in shares} == {
        "layers.*.a": 3.0,
        "layer2.a": 5.0,
        "(no module)": 1.0,
    }


@pytest.mark.parametrize("shares", [sums.by_kind, sums.by_module])
def test_shares_add_up_to_one(shares: object) -> None:
    assert callable(shares)
    parts = shares(fitting())
    assert sum(part.of_all for part in parts) == pytest.approx(1)
    assert sum(part.of_busiest for part in parts) == pytest.approx(1)
    assert [part.cycles for part in parts] == sorted((part.cycles for part in parts), reverse=True)


def test_the_update_is_no_part_of_a_pipeline_cycle() -> None:
    update = Work(0, 0, "update", "a", "lamb", "optimizer", 1e9, 1, 0)
    forward = Work(0, 0, "forward", "a", "mm", "matmul", 1.0, 1, 0)
    assert [share.name for share in sums.by_kind(with_work(update, forward))] == ["matmul"]
    assert [op.op for op in sums.costliest(with_work(update, forward), 9)] == ["mm"]


def test_costliest_operations_count_all_layers() -> None:
    op = sums.costliest(fitting(), 1)[0]
    assert (op.module, op.phase) == ("encoder.layers.*.feed_forward.output", "backward")
    assert op.count == 2 * sum(LAYERS)
    assert op.cycles == 2 * 170_000 * sum(LAYERS)
    every = sums.costliest(fitting(), 999)
    assert sum(each.of_all for each in every) == pytest.approx(1)
    assert op.of_all == pytest.approx(op.cycles / sum(each.cycles for each in every))


def test_the_fullest_ipu_is_the_one_with_the_fullest_tile() -> None:
    verdict = fitting()
    ipus = list(verdict.ipus)
    ipus[2] = replace(ipus[2], fullest_tile_bytes=ipus[2].tile_capacity_bytes + 1)
    assert sums.fullest(replace(verdict, ipus=tuple(ipus))).ipu == 2


def test_samples_of_a_step() -> None:
    assert sums.samples_per_step(fitting()) == 8 * 2048 * 4


def test_an_ipu_is_busy_with_all_parts_of_all_its_stages() -> None:
    stage = StageTime(0, 1, forward_s=1.0, recompute_s=2.0, backward_s=4.0, stash_s=8.0, copies_s=16.0)
    assert sums.busy_s(stage) == 31.0
    verdict = fitting()
    stages = (stage, replace(stage, stage=1, ipu=0), replace(stage, stage=2, recompute_s=0.0))
    verdict = replace(verdict, details=replace(verdict.details, stages=stages))
    assert sums.busy_s_of_ipus(verdict) == {0: 31.0, 1: 60.0, 2: 0.0, 3: 0.0}
    assert sums.busiest_ipu(verdict) == 1
    assert sums.busiest_ipu(replace(verdict, ipus=(), details=replace(verdict.details, stages=()))) == 0


def test_steps_and_cycles_have_the_names_of_their_kind() -> None:
    verdict = fitting()
    assert (sums.step_name(verdict), sums.cycle_name(verdict)) == ("weight update", "pipeline cycle")
    first, *others = verdict.details.stages
    some = (replace(first, backward_s=0.0), *others)
    assert sums.step_name(replace(verdict, details=replace(verdict.details, stages=some))) == "weight update"
    none = tuple(replace(stage, backward_s=0.0) for stage in verdict.details.stages)
    assert sums.step_name(replace(verdict, details=replace(verdict.details, stages=none))) == "call"
    in_turn = Pipeline(5, 8, 1e-3, 0.0, 8e-3)
    assert sums.cycle_name(replace(verdict, pipeline=in_turn)) == "micro batch"
