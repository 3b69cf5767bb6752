"""Reports of a verdict: text, JSON, HTML, Chrome trace."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cost.verdict import Verdict
from .html import comparison_html, html
from .terminal import shown
from .text import summary, text
from .trace import trace_text


def write_together(folder: Path, contents: Mapping[str, str]) -> None:
    """Writes several files (name -> text): all to temporary names, then an atomic rename of each."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, Path] = {}
    try:
        for name, content in contents.items():
            temporary = folder / f".{name}.{uuid.uuid4().hex}"
            written[temporary] = folder / name
            with temporary.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, path in written.items():
            temporary.replace(path)
    except BaseException as error:
        for temporary, path in written.items():
            if isinstance(error, OSError) and error.filename is None and temporary.exists():
                error.filename = str(path)
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise


def json_text(verdict: Verdict) -> str:
    """verdict.json. A number that JSON can't represent (an infinite time) becomes null."""
    return json.dumps(_plain(verdict.to_dict()), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


__all__ = ["FILES", "comparison_html", "html", "shown", "summary", "text", "trace_text", "write"]

FILES = ("verdict.json", "report.html", "trace.json")


def write(verdict: Verdict, folder: Path) -> None:
    """Writes verdict.json, report.html and trace.json into a folder, which is created if it doesn't exist.

    Each file is replaced atomically. Raises OSError with the file's name.
    """
    contents = (json_text(verdict), html(verdict), trace_text(verdict))
    write_together(folder, dict(zip(FILES, contents, strict=True)))
