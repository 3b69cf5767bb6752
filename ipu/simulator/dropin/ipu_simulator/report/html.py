"""report.html: the verdict as one file that needs no network and no script."""

from __future__ import annotations

from pathlib import Path

import jinja2
import markupsafe

from . import charts, sums, units
from .verdict import COMPONENTS, Verdict

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_MODULES_SHOWN = 16
_OPS_SHOWN = 20
_BUFFERS_SHOWN = 12

# What each origin of a number means, for the table of assumptions.
ORIGINS = {
    "published": "by the maker or by the authors of a measurement",
    "derived": "computed from published facts",
    "fitted": "to published rows of whole runs",
    "assumed": "a guess: nobody has published it",
    "measured": "by us",
}


def html(verdict: Verdict) -> str:
    """The whole page. Text of users (names of modules, of configurations) is escaped."""
    modules = sums.by_module(verdict)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            verdict=verdict,
            details=verdict.details,
            components=COMPONENTS,
            origins=ORIGINS,
            fullest=sums.fullest(verdict),
            samples=sums.samples_per_step(verdict),
            cycle_name=sums.cycle_name(verdict),
            step_name=sums.step_name(verdict),
            expected_error=sums.expected_error(verdict),
            busiest=sums.busiest_ipu(verdict),
            kinds=sums.by_kind(verdict),
            modules=modules[:_MODULES_SHOWN],
            other_modules=modules[_MODULES_SHOWN:],
            buffers_shown=_BUFFERS_SHOWN,
            ops=sums.costliest(verdict, _OPS_SHOWN),
            memory_bars=charts.memory_bars(verdict),
            liveness=charts.liveness_charts(verdict),
            cycle_rows=charts.cycle_rows(verdict),
            step=charts.step_chart(verdict),
            step_parts=charts.step_parts(verdict),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=units.human_bytes,
        seconds=units.human_seconds,
        count=units.human_count,
        rate=units.human_rate,
        percent=units.percent,
        number=units.plain_number,
        spoken=lambda name: name.replace("_", " "),
        path=lambda module: _breakable(module, "."),
        flags=sums.flags,
        words=lambda name: _breakable(name, "_"),
    )
    return environment


def _breakable(text: str, separator: str) -> markupsafe.Markup:
    """Text that may break behind every separator."""
    return markupsafe.escape(text).replace(separator, markupsafe.Markup(f"{separator}<wbr>"))
