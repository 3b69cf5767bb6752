"""report.html in headless Chromium: phone and desktop, light and dark, keyboard, print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from ipu_simulator import report
from ipu_simulator.cost.verdict import Verdict
from playwright.sync_api import Browser, Page

from tests.ipu_simulator.report.samples import fitting, overflowing
from tests.ipu_simulator.report.test_html import EVIL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
]  # one process, which starts the browser once

PHONE, DESKTOP = (390, 844), (1280, 800)

Open = Callable[..., Page]


@pytest.fixture
def open_report(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Writes a verdict and opens its page; fails on console messages and network requests."""
    contexts, complaints = [], []

    def open_page(
        verdict: Verdict, size: tuple[int, int] = DESKTOP, scheme: str = "light", script: bool = True
    ) -> Page:
        report.write(verdict, tmp_path)
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,  # type: ignore[arg-type]
            offline=True,
            java_script_enabled=script,
        )
        contexts.append(context)
        page = context.new_page()
        address = (tmp_path / "report.html").as_uri()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(address) or complaints.append(asked.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_no_rule_of_accessibility_is_broken(open_report: Open, size: tuple[int, int], scheme: str) -> None:
    # The page that overflows has every part that the one that fits has, but for the colours of its answer.
    verdict = fitting() if (size, scheme) in ((PHONE, "dark"), (DESKTOP, "light")) else overflowing()
    page = open_report(verdict, size, scheme)
    for summary in page.locator("summary").all():
        summary.click()
    # axe is a script, which the page's own policy forbids: the page is set up again without it.
    page.set_content(page.content().replace('http-equiv="Content-Security-Policy"', "data-policy"))
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("size", [PHONE, DESKTOP, (320, 640)], ids=["phone", "desktop", "small phone"])
def test_the_page_never_scrolls_sideways(open_report: Open, size: tuple[int, int]) -> None:
    page = open_report(overflowing(), size)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize(
    ("verdict", "answer"), [(fitting(), "Fits"), (overflowing(), "Does not fit")], ids=["fits", "overflows"]
)
def test_the_answer_is_on_the_first_screen(
    open_report: Open, verdict: Verdict, answer: str, size: tuple[int, int]
) -> None:
    page = open_report(verdict, size)
    strong = page.locator(".verdict strong")
    assert strong.inner_text().endswith(answer)
    box = strong.bounding_box()
    assert box is not None and box["y"] + box["height"] < size[1]


def test_memory_bars_are_drawn_to_scale(open_report: Open) -> None:
    verdict = overflowing()
    page = open_report(verdict)
    most = max(memory.peak_bytes for memory in verdict.ipus)
    for memory in verdict.ipus:
        chart = page.get_by_role("group", name=f"IPU {memory.ipu} at the peak")
        frame = chart.bounding_box()
        assert frame is not None
        end = 0.0
        for name, size in memory.components.items():
            if size:
                box = chart.locator(f"rect.{name}").bounding_box()
                assert box is not None
                assert box["width"] == pytest.approx(frame["width"] * size / most, abs=2.5)
                end = max(end, box["x"] + box["width"])
        assert end - frame["x"] == pytest.approx(frame["width"] * memory.peak_bytes / most, abs=2.5)


def test_colours_of_neighbours_differ_in_both_schemes(open_report: Open) -> None:
    for scheme in ("light", "dark"):
        page = open_report(fitting(), scheme=scheme)
        for chart in page.locator("svg.bar").all():
            colours = chart.evaluate(
                """svg => [...svg.querySelectorAll('rect')]
                    .map(each => [each.className.baseVal, getComputedStyle(each).fill])"""
            )
            for (one, first), (other, second) in pairwise(colours):
                assert one == other or first != second, (scheme, one, other)


def test_dark_is_dark_and_light_is_light(open_report: Open) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert open_report(fitting(), scheme="light").evaluate(background) == "rgb(255, 255, 255)"
    dark = open_report(fitting(), scheme="dark").evaluate(background)
    assert all(int(part) < 40 for part in dark[4:-1].split(","))


def test_the_keyboard_reaches_and_works_everything(open_report: Open) -> None:
    page = open_report(overflowing(), PHONE)
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to content"
    seen = []
    for _ in range(200):
        focused = page.evaluate(
            """() => {
                const it = document.activeElement;
                if (it === document.body) return null;
                const style = getComputedStyle(it);
                return [it.tagName, it.getAttribute('aria-labelledby') || it.textContent.trim(),
                        style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
            }"""
        )
        if focused is None:
            break
        assert focused[2], f"{focused} doesn't show that it has the focus"
        if focused[0] == "SUMMARY":
            page.keyboard.press("Enter")
        seen.append(focused)
        page.keyboard.press("Tab")
    else:
        pytest.fail("the focus never leaves the page")
    links = page.locator("a").count()
    assert [tag for tag, *_ in seen].count("A") == links
    assert page.locator("details:not([open])").count() == 0
    # The tables that the two disclosures show are reached as well.
    assert {"components", "stages"} <= {label for _, label, _ in seen}


def test_a_wide_table_scrolls_by_keyboard(open_report: Open) -> None:
    page = open_report(overflowing(), PHONE)
    region = page.locator("[role=region][aria-labelledby=costliest]")
    region.focus()
    assert region.evaluate("it => it.scrollWidth > it.clientWidth")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("it => it.scrollLeft > 0", arg=region.element_handle())


def test_print_is_black_on_white_and_leaves_nothing_folded(open_report: Open) -> None:
    page = open_report(overflowing(), scheme="dark")
    assert not page.locator("[aria-labelledby=components] table").is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("[aria-labelledby=components] table").is_visible()
    assert not page.locator("nav").is_visible()
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_nothing_of_a_users_text_runs(open_report: Open) -> None:
    verdict = overflowing(name=EVIL)
    page = open_report(replace(verdict, target=EVIL))
    assert page.locator("h1").inner_text() == f"{EVIL} on {EVIL}"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1


def _hint(page: Page) -> str:
    hint = page.locator("#hint")
    return hint.inner_text() if hint.is_visible() else ""


def test_the_pointer_gets_hints(open_report: Open) -> None:
    page = open_report(overflowing())
    memory = overflowing().ipus[1]
    page.get_by_role("group", name="IPU 1 at the peak").locator("rect.weights").hover()
    assert f"({memory.components['weights']:,} B)" in _hint(page)
    page.get_by_role("group", name="IPU 2: live bytes").locator("rect").nth(100).hover()
    assert "live on IPU 2" in _hint(page)
    assert "operation: addmm" in _hint(page)
    page.get_by_role("group", name="IPU 3 is busy").locator("rect.backward").first.hover()
    first, *others = _hint(page).splitlines()
    assert first.startswith("backward, stage 3")
    assert any(line.startswith("addmm in encoder.layers") and line.endswith("cycles") for line in others)
    page.mouse.move(0, 0)
    assert _hint(page) == ""


def test_the_keyboard_gets_hints(open_report: Open) -> None:
    page = open_report(overflowing())
    bar = page.get_by_role("group", name="IPU 0 at the peak")
    assert bar.locator("rect[tabindex='0']").count() == 1
    bar.locator("rect").first.focus()
    seen = [_hint(page)]
    for key in ("ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home"):
        page.keyboard.press(key)
        seen.append(_hint(page))
        assert page.locator(":focus").get_attribute("aria-label") is not None
    assert all(seen)
    assert seen[0] == seen[-1] != seen[1]
    assert seen[2] == seen[3] != seen[4]
    assert bar.locator("rect[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    assert _hint(page) == ""


def _operations(page: Page) -> list[list[str]]:
    rows = page.locator("[aria-labelledby=costliest] tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_operations_are_sorted_filtered_and_grouped(open_report: Open) -> None:
    page = open_report(fitting())
    every = _operations(page)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Cycles")
    page.get_by_role("button", name="Cycles").click()
    cycles = [int(row[2].replace(",", "")) for row in _operations(page)]
    assert cycles == sorted(cycles) == sorted(int(row[2].replace(",", "")) for row in every)
    page.get_by_role("button", name="Operation").press("Enter")
    names = [row[0] for row in _operations(page)]
    assert names[0] < names[-1]
    page.get_by_label("Filter").fill("norm BACKWARD")
    found = _operations(page)
    assert 0 < len(found) < len(every)
    assert all("norm" in row[0] and row[3] == "backward" for row in found)
    assert page.get_by_text(f"{len(found)} of {len(every)} operations").is_visible()
    page.get_by_label("Group by module").check()
    groups = page.locator("tr.group").all_inner_texts()
    assert len(groups) == 2
    assert "norm" in groups[0]
    page.get_by_label("Group by module").uncheck()
    page.get_by_label("Filter").fill("")
    assert len(_operations(page)) == len(every)
    # A page saved from the browser is set up once more.
    page.get_by_label("Group by module").check()
    page.set_content(page.content())
    assert len(_operations(page)) == len(every)
    page.get_by_label("Filter").fill("softmax")
    assert 0 < len(_operations(page)) < len(every)


def test_the_page_is_complete_without_its_script(open_report: Open) -> None:
    page = open_report(overflowing(), script=False)
    assert page.locator("#hint, input, button").count() == 0
    assert page.locator("[aria-labelledby=costliest] tbody tr").count() > 20
    assert page.locator("svg[role=img] rect title").count() > 100
    assert page.get_by_role("heading", name="Memory of each tile").is_visible()
