"""The verdict and its forms: text, JSON, HTML, Chrome trace."""

from __future__ import annotations

from pathlib import Path

from .files import write_together
from .html import html
from .json import json_text
from .text import summary, text
from .trace import trace_text
from .verdict import Verdict

__all__ = ["FILES", "html", "summary", "text", "trace_text", "write"]

FILES = ("verdict.json", "report.html", "trace.json")


def write(verdict: Verdict, folder: Path) -> None:
    """Writes verdict.json, report.html and trace.json into a folder, which is made where it's missing.

    Whoever reads a file sees all of it or the one before. Raises OSError, with the file's name.
    """
    contents = (json_text(verdict), html(verdict), trace_text(verdict))
    write_together(folder, dict(zip(FILES, contents, strict=True)))
