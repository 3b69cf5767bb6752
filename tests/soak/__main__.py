"""Everything that `./dev soak` runs, and its figures.

    python -m tests.soak [--inputs N] [--recipes N] [--kills N] [--minutes M] [--only NAME ...] [--write]

All jobs advance together, in parts of a few trials; after each part the figures are kept in --record, and the
same command at the same commit goes on from there. Exit status: 0 no fault, 1 faults.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import re
import resource
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import ipu
from tests.soak import figures as figures_module
from tests.soak import fuzz, kills, recipes
from tests.soak.figures import ROOT, Record
from tests.soak.fuzz import Figures
from tests.soak.targets import TARGETS

PAGE = ROOT / "docs" / "reliability.md"
_SHOWN_FAULTS = 5
# Trials of a part.
_PART = {"parser": 500, "recipes and command lines": 50, "kills": 4}

# Of a job: (number of the first trial, how many, seconds left) -> figures.
Runner = Callable[[int, int, float], Figures]


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    ipu.select_device("simulator")
    began = time.monotonic()
    counts = {f"parser: {name}": arguments.inputs for name in TARGETS}
    counts["recipes and command lines"] = arguments.recipes
    counts.update({f"kills: {name}": -(-arguments.kills // len(kills.KINDS)) for name in kills.KINDS})
    if arguments.only:
        counts = {job: n for job, n in counts.items() if any(word in job for word in arguments.only)}
    record = Record(arguments.record, counts, figures_module.commit())
    _run(arguments, counts, record, began + 60 * arguments.minutes)
    for job, entry in record.entries.items():
        print(f"{job}: {entry.inputs:,} of {entry.of:,} trials, {len(entry.faults)} faults", flush=True)
        for number, fault in entry.faults[:_SHOWN_FAULTS]:
            print(f"  number {number}: {fault.strip()[-1500:]}", flush=True)
    if arguments.write:
        command = shlex.join(["./dev", "soak", *sys.argv[1:]])
        took = f"{(time.monotonic() - began) / 60:.0f} minutes"
        said = f"`{command}`: {took} in {arguments.processes} processes on {os.cpu_count()} cores."
        PAGE.write_text(figures_module.written(PAGE.read_text(), said, record.entries))
    return int(any(entry.faults for entry in record.entries.values()))


def _run(arguments: argparse.Namespace, counts: dict[str, int], record: Record, deadline: float) -> None:
    """Runs the parts that the record lacks in several processes, and keeps the figures of each."""
    parts = [part for part in _parts(counts) if part[1] not in record.entries[part[0]].parts]
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue = context.Queue()
    shares = [parts[number :: arguments.processes] for number in range(arguments.processes)]
    workers = [context.Process(target=_work, args=(share, deadline, results)) for share in shares]
    for worker in workers:
        worker.start()
    awaited = len(parts)
    while awaited and any(worker.is_alive() for worker in workers):
        try:
            job, part, figures = results.get(timeout=10)
        except queue.Empty:
            continue
        awaited -= 1
        record.entries[job].add(part, figures)
        record.save()
        if figures.faults:
            print(f"{job}: {figures.faults[0][1].strip()[-1500:]}", flush=True)
    for worker in workers:
        worker.join(timeout=60)
        worker.kill()


def _parts(counts: dict[str, int]) -> list[tuple[str, int, int, int]]:
    """(job, number of the part, first trial, trials) such that all jobs advance together."""
    parts = []
    for job, count in counts.items():
        size = _PART[job.partition(":")[0]]
        for number, first in enumerate(range(0, count, size)):
            parts.append((first / count, (job, number, first, min(size, count - first))))
    return [part for _, part in sorted(parts)]


def _work(parts: list[tuple[str, int, int, int]], deadline: float, results: multiprocessing.Queue) -> None:
    """One of several processes, each with a share of every job."""
    fuzz.end_with_parent()
    runners: dict[str, Runner] = {}
    with tempfile.TemporaryDirectory() as folder:
        for job, number, first, count in parts:
            left_s, before_s = deadline - time.monotonic(), _cpu_s()
            if left_s <= 0:
                break
            try:
                if job not in runners:
                    runners[job] = _runner(job, Path(folder))
                figures = runners[job](first, count, left_s)
                figures.is_whole = figures.inputs == count
            except BaseException:
                figures = Figures(faults=[(first, traceback.format_exc())], is_whole=False)
            figures.cpu_s = _cpu_s() - before_s
            results.put((job, number, figures))
        results.close()
        results.join_thread()


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _runner(job: str, folder: Path) -> Runner:
    kind, _, name = job.partition(": ")
    if kind == "kills":
        return kills.Killing(name, folder / re.sub(r"\W", "_", name)).runs
    most_s = float(fuzz.MOST_SECONDS)
    if kind == "parser":
        trial = fuzz.of_target(name)
    else:
        most_s *= 6  # a first step
        trial = recipes.trial(folder / "recipes")
    return lambda first, count, left_s: fuzz.trials(trial, first, count, deadline_s=left_s, most_s=most_s)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of each parser [10000]")
    parser.add_argument("--recipes", type=int, default=5_000, help="recipes and command lines [5000]")
    parser.add_argument("--kills", type=int, default=800, help="runs to kill; a third end before it [800]")
    parser.add_argument("--minutes", type=float, default=120, help="end after this time [120]")
    parser.add_argument("--processes", type=int, default=2, help="that share the work [2]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="jobs with a name like this")
    parser.add_argument(
        "--record", type=Path, default=ROOT / "output" / "soak.json", help="where figures are kept, to go on"
    )
    parser.add_argument("--write", action="store_true", help=f"write the figures into docs/{PAGE.name}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
