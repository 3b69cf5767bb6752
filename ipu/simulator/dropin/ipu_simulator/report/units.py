"""Numbers as people read them. Bytes are binary multiples: an IPU's 897 MiB of SRAM."""

from __future__ import annotations

import math

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COUNT_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def human_bytes(count: float) -> str:
    """ "897.0 MiB"; whole bytes below 1 KiB. Never "1024.0 MiB"."""
    size, unit = abs(float(count)), 0
    while round(size, 1) >= 1024 and unit < len(_BYTE_UNITS) - 1:
        size /= 1024
        unit += 1
    sign = "-" if count < 0 else ""
    return f"{sign}{size:.0f} B" if unit == 0 else f"{sign}{size:.1f} {_BYTE_UNITS[unit]}"


def human_seconds(seconds: float) -> str:
    """ "6.11 ms", "2.165 s", "1 h 05 min", "3 d 04 h": two units from a minute on."""
    if math.isinf(seconds) or math.isnan(seconds):
        return "never" if seconds > 0 else "unknown"
    if seconds < 0:
        return f"-{human_seconds(-seconds)}"
    if seconds == 0:
        return "0 s"
    if seconds < 999.5e-6:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 999.5e-3:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"
    if seconds < 3599.5:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60:02d} s"
    if seconds < 86400 - 30:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24:,} d {hours % 24:02d} h"


def human_count(value: float) -> str:
    """ "336.2 M": three to four digits and a decimal prefix."""
    for factor, prefix in _COUNT_UNITS:
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.1f} {prefix}"
    return f"{value:.3g}"


def human_rate(value: float) -> str:
    """Something a second: "5,179", "12.3", "0.84"."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def percent(fraction: float) -> str:
    """ "93.4%"."""
    return f"{fraction:.1%}"


def plain_number(value: float) -> str:
    """A value of a table of assumptions: "1.088", "638,976", "2.2e+09"."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}"
