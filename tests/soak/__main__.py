"""Everything that `./dev soak` runs, and its figures.

    python -m tests.soak [--inputs N] [--recipes N] [--kills N] [--minutes M] [--only NAME ...] [--write]

Exit status: 0 no fault, 1 faults.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import multiprocessing
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import ipu
from tests.soak import fuzz, kills, recipes
from tests.soak.fuzz import Figures
from tests.soak.targets import TARGETS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures of ./dev soak -->", "<!-- end of the figures -->"
_SHOWN_FAULTS = 5


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    ipu.select_device("simulator")
    began = time.monotonic()
    deadline = began + 60 * arguments.minutes
    jobs = [f"parser: {name}" for name in TARGETS]
    jobs += ["recipes and command lines", *(f"kills: {name}" for name in kills.KINDS)]
    if arguments.only:
        jobs = [job for job in jobs if any(word in job for word in arguments.only)]
    found = {job: Figures() for job in jobs}
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue = context.Queue()
    workers = [
        context.Process(target=_work, args=(arguments, jobs, part, deadline, results))
        for part in range(arguments.processes)
    ]
    for worker in workers:
        worker.start()
    for _ in range(len(jobs) * len(workers)):
        job, part, figures = results.get(timeout=60 * arguments.minutes + 600)
        _say(job, part, figures)
        found[job].inputs += figures.inputs
        found[job].refused += figures.refused
        found[job].faults += figures.faults
    for worker in workers:
        worker.join(timeout=60)
    minutes = (time.monotonic() - began) / 60
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(), table(found, minutes, sys.argv[1:])))
    return int(any(figures.faults for figures in found.values()))


def _work(
    arguments: argparse.Namespace, jobs: list[str], part: int, deadline: float, results: multiprocessing.Queue
) -> None:
    """One of several processes, each with a share of every job."""
    fuzz.end_with_parent()
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            try:
                figures = _figures(arguments, job, part, deadline, Path(folder))
            except BaseException:
                figures = Figures(faults=[(-1, traceback.format_exc())])
            results.put((job, part, figures))
        results.close()
        results.join_thread()


def _figures(arguments: argparse.Namespace, job: str, part: int, deadline: float, folder: Path) -> Figures:
    kind, _, name = job.partition(": ")
    if time.monotonic() > deadline:
        return Figures()
    share = {"parser": arguments.inputs, "kills": -(-arguments.kills // len(kills.KINDS))}.get(
        kind, arguments.recipes
    )
    count = share // arguments.processes + (part < share % arguments.processes)
    seed = arguments.seed * arguments.processes + part
    if kind == "kills":
        place = folder / re.sub(r"\W", "_", name)
        return kills.kills(name, count, place, seed=seed, deadline=deadline)
    most_s = float(fuzz.MOST_SECONDS)
    if kind == "parser":
        trial = fuzz.of_target(name)
    else:
        most_s *= 6  # a first step
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            trial = recipes.trial(folder / "cache")
    left_s = deadline - time.monotonic()
    return fuzz.trials(trial, seed * 1_000_000, count, deadline_s=left_s, most_s=most_s)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of each parser [10000]")
    parser.add_argument("--recipes", type=int, default=5_000, help="recipes and command lines [5000]")
    parser.add_argument("--kills", type=int, default=500, help="runs that are killed [500]")
    parser.add_argument("--minutes", type=float, default=120, help="end after this time [120]")
    parser.add_argument("--processes", type=int, default=2, help="that share the work [2]")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other inputs [0]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="jobs with a name like this")
    parser.add_argument("--write", action="store_true", help=f"write the figures into docs/{PAGE.name}")
    return parser.parse_args()


def _say(job: str, part: int, figures: Figures) -> None:
    said = f"{figures.inputs:,} trials, {len(figures.faults)} faults"
    print(f"{job}, process {part}: {said}", flush=True)
    for number, fault in figures.faults[:_SHOWN_FAULTS]:
        print(f"  number {number}: {fault.strip()[-1500:]}", flush=True)


def table(found: dict[str, Figures], minutes: float, arguments: list[str]) -> str:
    """The figures, with the date, the command and the host's cores."""
    command = shlex.join(["./dev", "soak", *arguments])
    rows = [figures.row(job) for job, figures in found.items()]
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return (
        f"`{command}` on {today}: {minutes:.0f} minutes, {os.cpu_count()} cores.\n\n"
        "| what | trials | refused by name, or killed | faults |\n|---|---|---|---|\n" + "\n".join(rows)
    )


def written(page: str, figures: str) -> str:
    """The page with other figures between its two marks."""
    assert BEGIN in page and END in page, "the page has lost the marks of the figures"
    parts = re.split(f"{re.escape(BEGIN)}.*{re.escape(END)}", page, flags=re.DOTALL)
    return f"{BEGIN}\n{figures}\n{END}".join(parts)


if __name__ == "__main__":
    sys.exit(main())
