"""The figures of `./dev soak`: kept after every few trials, so that an interrupted soak goes on, and written
into docs/reliability.md, each job with its date and commit."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.files import write_atomically
from tests.soak.fuzz import Figures

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- figures of ./dev soak -->", "<!-- end of the figures -->"
_HEAD = (
    "| what | trials | refused by name, or killed | faults | CPU time | date | commit |\n" + 7 * "|---" + "|"
)


@dataclass
class Entry:
    """What a job has done: `parts` are the numbers of its finished parts, of `of` trials in all."""

    of: int
    commit: str
    date: str = ""
    parts: list[int] = field(default_factory=list)
    inputs: int = 0
    refused: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)
    cpu_s: float = 0.0

    def add(self, part: int, figures: Figures) -> None:
        """Adds a part. One that the time ended stays to be done, and only its faults count."""
        if figures.is_whole:
            self.parts.append(part)
            self.inputs += figures.inputs
            self.refused += figures.refused
        self.faults += figures.faults
        self.cpu_s += figures.cpu_s
        self.date = str(datetime.datetime.now(datetime.timezone.utc).date())

    def row(self, name: str) -> str:
        trials = f"{self.inputs:,}" if self.inputs >= self.of else f"{self.inputs:,} of {self.of:,}"
        cells = (name, trials, f"{self.refused:,}", len(self.faults), f"{self.cpu_s:,.0f} s", self.date)
        return f"| {' | '.join(map(str, cells))} | {self.commit} |"


class Record:
    """The entries of all jobs in a JSON file. Those of another commit, or number of trials, begin anew."""

    def __init__(self, file: Path, counts: dict[str, int], commit: str) -> None:
        self._file = file
        found: dict[str, Entry] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = {name: Entry(**entry) for name, entry in json.loads(file.read_text()).items()}
        self.entries = {
            name: found[name]
            if name in found and (found[name].of, found[name].commit) == (of, commit)
            else Entry(of, commit)
            for name, of in counts.items()
        }
        self._others = {name: entry for name, entry in found.items() if name not in counts}

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        content = {name: asdict(entry) for name, entry in {**self._others, **self.entries}.items()}
        write_atomically(self._file, json.dumps(content, indent=1).encode())


def commit() -> str:
    """The commit that is checked out; with a + if files differ from it."""

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")


def written(page: str, said: str, entries: dict[str, Entry]) -> str:
    """The page with these entries in its table; rows of other jobs stay. `said` stands above the table."""
    assert BEGIN in page and END in page, "the page has lost the marks of the figures"
    pattern = f"{re.escape(BEGIN)}(.*){re.escape(END)}"
    before = re.search(pattern, page, flags=re.DOTALL)
    assert before is not None
    rows = {row.split(" | ")[0].strip("| "): row for row in before[1].splitlines() if row.count("|") == 8}
    rows = {name: row for name, row in rows.items() if name != "what" and not name.startswith("---")}
    rows.update((name, entry.row(name)) for name, entry in entries.items() if entry.inputs)
    table = "\n".join([_HEAD, *rows.values()])
    return page[: before.start()] + f"{BEGIN}\n{said}\n\n{table}\n{END}" + page[before.end() :]
