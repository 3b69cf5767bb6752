"""Reports on the cost model's verdicts: programs that fit, and one that doesn't."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from ipu_simulator import report
from ipu_simulator.report import sums

from planning import dry_run
from tests.ipu_simulator.report.test_html import Document
from tests.ipu_simulator.report.trace_checks import check
from tests.planning.recipe_programs import recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("recipes"),
]  # with the other users of `recipe_programs`

CASES = {
    "demo": {},
    "groupbert_base_128_pod16": {},
    # One layer an IPU is too large already.
    "bert_base_128_pod16": {"micro_batch_size": 128, "num_layers": 3, "layers_per_ipu": (0, 1, 1, 1)},
}


@functools.cache
def verdict_of(name: str) -> Any:
    return dry_run.verdict_of(recipe(name, **CASES[name]), name)


@pytest.mark.parametrize("name", CASES)
def test_all_forms_hold(name: str) -> None:
    verdict = verdict_of(name)
    text = report.text(verdict)
    assert max(map(len, text.splitlines())) <= 110
    assert ("DOES NOT FIT" in text) == bool(verdict.details.overflows) == (not verdict.fits)
    Document(report.html(verdict))
    check(report.trace_text(verdict))


@pytest.mark.parametrize("name", CASES)
def test_the_parts_agree_with_the_whole(name: str) -> None:
    verdict = verdict_of(name)
    busy_s = sums.busy_s_of_ipus(verdict)
    assert max(busy_s.values()) <= verdict.pipeline.cycle_s
    assert sum(verdict.details.update_parts_s.values()) == pytest.approx(verdict.update_s)
    assert verdict.fits == (sums.fullest(verdict).filled <= 1)
    for memory in verdict.ipus:
        live = [point.live_bytes for point in verdict.details.liveness if point.ipu == memory.ipu]
        assert max(live) == memory.peak_bytes
        assert sum(memory.components.values()) == memory.peak_bytes
    assert sum(share.of_all for share in sums.by_module(verdict)) == pytest.approx(1)


def test_a_proof_exceeds_the_memory_alone_and_no_fewer_buffers_do() -> None:
    verdict = verdict_of("bert_base_128_pod16")
    usable = {memory.ipu: memory.usable_bytes for memory in verdict.ipus}
    for overflow in verdict.details.overflows:
        sizes = [buffer.bytes for buffer in overflow.buffers]
        assert sum(sizes) >= usable[overflow.ipu]
        assert sum(sizes) - min(sizes) <= usable[overflow.ipu] + 1
