"""`poptorch-simulator compare A/verdict.json B/verdict.json`: two verdicts side by side.

Prints a Markdown table and writes a page. The exit status is 1 if B is worse, 2 for a user's mistake.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

PAGE = "comparison.html"


def run(program: str, arguments: list[str]) -> int:
    """Runs the command; returns its exit status. `program`: the command that the user typed before it."""
    parser = argparse.ArgumentParser(
        prog=f"{program} compare",
        description="Lays two verdicts side by side: a Markdown table, and one page. The exit status is 1 if "
        "B no longer fits, or needs more memory on an IPU or more time for a step than A by a larger share "
        "than --worse-by.",
    )
    parser.add_argument("before", type=Path, metavar="A", help="a verdict.json, or the folder that has one")
    parser.add_argument("after", type=Path, metavar="B", help="the same, to be compared with A")
    parser.add_argument(
        "--worse-by",
        type=_share,
        metavar="SHARE",
        help="the share of memory or step time that B may have more of: 0.05 is 5%% (default: 0.01)",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help=f"where the page goes (default: {PAGE} beside B)"
    )
    flags = parser.parse_args(arguments)
    try:
        # They need jinja2, which the command needs for nothing else.
        from .report import comparison_html, write_together
        from .report.compare import WORSE_BY, NoVerdict, compared, markdown, read
    except ImportError as error:
        return _mistake(parser.prog, f"it needs {error.name}, not installed here: pip install {error.name}")
    try:
        before, after = read(flags.before), read(flags.after)
        comparison = compared(before, after, WORSE_BY if flags.worse_by is None else flags.worse_by)
        print(markdown(comparison))
        beside = flags.after if flags.after.is_dir() else flags.after.parent
        page = beside / PAGE if flags.html is None else flags.html
        write_together(page.parent, {page.name: comparison_html(comparison)})
    except (NoVerdict, OSError) as error:
        return _mistake(parser.prog, str(error))
    print(f"page {page}")
    return 1 if comparison.worse else 0


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not (0 <= share < math.inf):
        raise argparse.ArgumentTypeError(f"expected a share of at least 0, such as 0.05, found {text!r}")
    return share


def _mistake(program: str, problem: str) -> int:
    print(f"{program}: {problem}", file=sys.stderr)
    return 2
