"""report.html as a document: complete, self-contained, escaped. test_browser.py renders it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from ipu_simulator import report
from ipu_simulator.cost.verdict import COMPONENTS, Assumption, Buffer, Work
from ipu_simulator.report.hints import Hints
from ipu_simulator.report.html import cycle_rows, liveness_charts, memory_bars, tile_bars
from ipu_simulator.report.schedule import Slice

from tests.ipu_simulator.report.samples import fitting, overflowing
from tests.ipu_simulator.report.test_schedule import pipelined

VOID = {"meta", "link", "img", "br", "hr", "wbr", "input"}
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"


class Document(HTMLParser):
    """Elements in order, with their attributes; AssertionError where tags don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def attribute(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]


@pytest.mark.parametrize(
    "verdict",
    [fitting(), overflowing(), pipelined((0,), 1), pipelined((0, 1, 2), 9, trained=False)],
    ids=["fits", "overflows", "one IPU", "inference"],
)
def test_the_document_is_whole(verdict) -> None:  # type: ignore[no-untyped-def]
    document = Document(report.html(verdict))
    ids = document.attribute("id")
    assert len(ids) == len(set(ids))
    for reference in document.attribute("aria-labelledby"):
        assert reference in ids
    for link in document.attribute("href"):
        assert link.startswith("#") and link[1:] in ids


def test_nothing_comes_from_elsewhere_and_one_script_runs() -> None:
    text = report.html(overflowing())
    document = Document(text)
    tags = [tag for tag, _ in document.elements]
    assert not {"link", "img", "iframe", "object"} & set(tags)
    assert tags.count("script") == 1
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    assert document.attribute("src") == []
    assert not re.search(r"url\(|@import|https?:", text)
    policy = next(a["content"] for tag, a in document.elements if a.get("http-equiv"))
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"\b(fetch|import|eval|XMLHttpRequest|innerHTML|localStorage)\b", script)


def test_users_text_stays_text() -> None:
    verdict = overflowing(name=EVIL)
    details = verdict.details
    overflow = details.overflows[0]
    buffers = tuple(replace(buffer, name=EVIL, module=EVIL) for buffer in overflow.buffers)
    evil = replace(
        verdict,
        target=EVIL,
        remedies=tuple(replace(remedy, change=EVIL) for remedy in verdict.remedies),
        details=replace(
            details,
            work=(*details.work, Work(1, 1, "forward", EVIL, EVIL, EVIL, 1e9, 1, 0)),
            overflows=(replace(overflow, moment=EVIL, buffers=buffers),),
            liveness=tuple(replace(point, label=EVIL) for point in details.liveness),
            bounds=tuple(replace(bound, op=EVIL, module=EVIL) for bound in details.bounds),
            assumptions=(Assumption(EVIL, 1.0, EVIL, "assumed", EVIL),),
        ),
    )
    document, tame = Document(report.html(evil)), Document(report.html(verdict))
    assert {tag for tag, _ in document.elements} == {tag for tag, _ in tame.elements}
    attributes = {name for _, attributes in document.elements for name in attributes}
    assert not [name for name in attributes if name.startswith("on")]
    assert "".join(document.text).count("alert(2)") >= 12


def test_the_page_holds_every_part_of_the_verdict() -> None:
    verdict = overflowing()
    text = " ".join("".join(Document(report.html(verdict)).text).split())
    for heading in (
        "Does not fit",
        "Why it does not fit",
        "Remedies",
        "Memory of each IPU",
        "Liveness over the step",
        "One pipeline cycle of the main phase",
        "One weight update",
        "By kind of operation",
        "By module",
        "The costliest operations",
        "Operations without a cost rule",
        "Assumptions",
    ):
        assert heading in text
    for assumption in verdict.details.assumptions:
        assert assumption.name in text and assumption.source in text
    for component in COMPONENTS:
        assert component.replace("_", " ") in text
    for buffer in verdict.details.overflows[0].buffers:
        assert buffer.name in text
    assert "predicted by a model" in text


def test_memory_bars_are_to_one_scale_and_without_gaps() -> None:
    verdict = overflowing()
    most = max(memory.peak_bytes for memory in verdict.ipus)
    for bar in memory_bars(verdict):
        for segments, total in (
            (bar.peak, bar.memory.peak_bytes),
            (bar.always_live, bar.memory.always_live_bytes),
        ):
            end = 0.0
            for segment in segments:
                assert segment.x == pytest.approx(end, abs=0.011)
                end = segment.x + segment.width
            assert end == pytest.approx(1000 * total / most, abs=0.011)
        for segment in bar.peak:
            size = bar.memory.components[segment.name]
            assert segment.width == pytest.approx(1000 * size / most, abs=0.006)
        assert bar.usable_x < bar.capacity_x < 1000


def test_a_liveness_chart_loses_no_peak() -> None:
    verdict = fitting()
    points = list(verdict.details.liveness)
    spike = 2 * max(point.live_bytes for point in points)
    points[1238] = replace(points[1238], live_bytes=spike, label="spike")
    found = liveness_charts(replace(verdict, details=replace(verdict.details, liveness=tuple(points))))
    chart = found[points[1238].ipu]
    assert chart.peak.label == "spike"
    heights = [float(number) for number in re.findall(r"V([\d.]+)H", chart.outline)]
    assert min(heights) == chart.peak_y == 0
    # The others are drawn to the same scale.
    assert found[0].peak_y == pytest.approx(1000 * (1 - verdict.ipus[0].peak_bytes / spike), abs=0.01)
    assert sum(segment.width for segment in chart.phases) == pytest.approx(1000, abs=0.1)


def test_the_cycle_chart_is_as_full_as_the_busiest_ipu_is_busy() -> None:
    rows = cycle_rows(fitting())
    assert [row.ipu for row in rows] == [0, 1, 2, 3]
    assert rows[1].busy == pytest.approx(1)
    for row in rows:
        assert sum(segment.width for segment in row.segments) == pytest.approx(1000 * row.busy, abs=0.1)


def test_a_long_proof_keeps_its_smaller_buffers_folded() -> None:
    """They are still on the page, and the table has their sum."""
    verdict = overflowing()
    buffers = tuple(Buffer(f"b-{number}-", "weights", "m", 2**20) for number in range(40))
    overflow = replace(verdict.details.overflows[0], buffers=buffers)
    page = report.html(replace(verdict, details=replace(verdict.details, overflows=(overflow,))))
    document = Document(page)
    words = " ".join(" ".join(document.text).split())
    assert "28.0 MiB 28 smaller ones 40.0 MiB total The 28 smaller ones" in words
    assert [f"b-{number}-" in words for number in range(40)] == [True] * 40
    assert page.index("b-11-") < page.index("The 28 smaller ones") < page.index("b-12-")


def test_hints_name_operation_module_bytes_and_cycles() -> None:
    verdict = overflowing()
    path = "encoder.layers.7.feed_forward.output"
    label = f"addmm in {path}"
    point = replace(verdict.details.liveness[-1], phase="forward", label=label, live_bytes=3 << 20)
    buffers = ((1, Buffer("encoder.layers.3.weight", "weights", path, 5 << 20)),)
    details = replace(
        verdict.details,
        liveness=(replace(point, ipu=1),),
        largest_buffers=buffers,
        peak_moments={1: f"forward: {label}"},
        clock_hz=1e9,
    )
    text = report.html(replace(verdict, details=details))
    titles = [" ".join(each.split()) for each in re.findall(r"<title>(.*?)</title>", text, re.DOTALL)]
    (cycles,) = {work.cycles for work in details.work if work.module == path and work.phase == "forward"}
    (found,) = [each for each in titles if each.startswith("3.0 MiB live on IPU 1")]
    assert found == (
        f"3.0 MiB live on IPU 1 (3,145,728 B) operation: addmm, forward module: {path} cycles: {cycles:,.0f}"
    )
    (found,) = [each for each in titles if each.startswith("weights:") and "IPU 1, at the peak" in each]
    assert found.endswith(
        f"the peak is in forward: {label}, {cycles:,.0f} cycles largest buffers: 5.0 MiB: "
        f"encoder.layers.3.weight, in {path}"
    )
    stage = next(stage for stage in details.stages if stage.ipu == 1)
    slices = [each for each in titles if each.startswith("forward, stage 1, micro batch")]
    assert slices
    for each in slices:
        assert f"{stage.forward_s * 1e9:,.0f} cycles" in each
        assert "at most 3.0 MiB live on IPU 1 in forward" in each
        assert f"{label}" not in each or "cycles" in each


def test_a_hint_averages_an_operations_calls_and_names_the_costliest_first() -> None:
    verdict = overflowing()
    kinds = (("mm", 100.0, 2), ("mm", 500.0, 1), ("gelu", 900.0, 3))  # mm stands in two entries
    work = tuple(
        Work(1, 1, "forward", "layer", op, "matmul", cycles, count, 0) for op, cycles, count in kinds
    )
    hints = Hints(replace(verdict, details=replace(verdict.details, work=work)))
    point = replace(verdict.details.liveness[0], ipu=1, phase="forward", label="mm in layer")
    assert hints.point(point).splitlines()[-1] == "cycles: 200, 3 times in a cycle"
    first, *others = hints.slice(Slice(1, 1, "forward", 0, 0, 0.0, 1e-3)).splitlines()
    assert first.startswith("forward, stage 1, micro batch 0: ")
    costs = ["gelu in layer: 900 cycles", "mm in layer: 500 cycles", "mm in layer: 100 cycles"]
    assert others[-3:] == costs


def test_tiles_are_drawn_to_one_scale() -> None:
    verdict = overflowing()
    most = max(memory.fullest_tile_bytes for memory in verdict.ipus)
    for bar in tile_bars(verdict):
        end = bar.fullest[-1].x + bar.fullest[-1].width
        assert end == pytest.approx(1000 * bar.memory.fullest_tile_bytes / most, abs=0.2)
        end = bar.mean[-1].x + bar.mean[-1].width
        assert end == pytest.approx(1000 * bar.mean_bytes / most, abs=0.2)
        assert bar.mean_bytes == round(bar.memory.peak_bytes / 1472)
