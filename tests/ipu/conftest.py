"""Programs on `--device ipu`, over the stand-in for PopTorch in `stand_in/`. Each runs in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import pydoc
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# An IPU host's, to run these tests there or in such an environment: Python 3.8 with torch 2.0.1.
PYTHON = os.environ.get("STAND_IN_PYTHON", sys.executable)
STAND_IN = Path(__file__).resolve().parent / "stand_in"


@dataclass
class Ended:
    """A process that ended: its status and output, and the calls of the compiled core, in order."""

    status: int
    out: str
    err: str
    calls: list = field(default_factory=list)

    def names(self, *left_out):
        """ "training run", ... without the calls that are left out."""
        return [
            f"{call['kind']} {call['call']}"
            for call in self.calls
            if "kind" in call and call["call"] not in left_out
        ]

    def of(self, call, kind=None):
        return [
            entry for entry in self.calls if entry["call"] == call and kind in (None, entry.get("kind", kind))
        ]


# Several runs of a process that imports torch once: each has its environment, output and status.
SEVERAL = """
import json, os, sys, traceback
import command_line, run_pretraining

before = dict(os.environ)
for prefix, words, environment in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(before, **environment)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{prefix}.{name}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.argv[1:] = words
    try:
        status = command_line.run_as_program(run_pretraining.main)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{prefix}.status", "w") as file:
        file.write(str(status))
"""


def _calls(log):
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


class StandIn:
    """Starts programs; their core's calls go to a file each in `folder`."""

    def __init__(self, folder, corpus, cache):
        self.folder, self.corpus, self.cache, self.started = folder, corpus, cache, []

    def start(self, words, **environment):
        log = self.folder / f"calls-{len(self.started)}.jsonl"
        ours = ("POPTORCH", "PYTHON", "POPDIST", "OMPI", "MASTER", "IPU_SIMULATOR", "STAND_IN")
        keep = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        process = subprocess.Popen(
            [PYTHON, *map(str, words)],
            cwd=ROOT,
            env={
                **keep,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(STAND_IN), str(ROOT)]),
                "STAND_IN_LOG": str(log),
                **{name: str(value) for name, value in environment.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        process.log = log
        self.started.append(process)
        return process

    def end(self, process, timeout=120):
        out, err = process.communicate(timeout=timeout)
        return Ended(process.returncode, out, err, _calls(process.log))

    def left_by(self, process):
        """The processes of an ended program's session that don't follow it; on a busy machine that takes
        seconds."""
        deadline = time.monotonic() + 60
        while True:
            left = []
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError, ValueError):
                    if os.getsid(int(entry.name)) == process.pid:
                        left.append((entry / "cmdline").read_text().replace("\0", " "))
            left = [command for command in left if command]  # a zombie has none
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.1)

    def code(self, program, **environment):
        """Runs the text of a program, which must succeed."""
        ended = self.end(self.start(["-c", textwrap.dedent(program)], **environment))
        assert ended.status == 0, ended.err
        return ended

    def arguments(self, output, *extra, config="test_groupbert"):
        return [
            *("--config", config, "--output", output, "--corpus", self.corpus, "--cache-folder", self.cache),
            *("--device", "ipu", "--no-progress-bar", "--validation-fraction", 0.2),
            *("--preprocessing-workers", 0, *extra),
        ]

    def pretraining(self, output, *extra, **environment):
        """A run of the pretraining runner, as its user starts it."""
        words = [ROOT / "run_pretraining.py", *self.arguments(output, *extra)]
        return self.end(self.start(words, **environment))

    def pretrainings(self, *runs):
        """Runs of the pretraining runner one after the other, in a process; each is (output, extra words, its
        environment)."""
        told, prefixes = [], []
        for output, extra, environment in runs:
            prefix = self.folder / f"several-{len(self.started)}-{len(prefixes)}"
            prefixes.append(prefix)
            variables = {"STAND_IN_LOG": f"{prefix}.jsonl", **environment}
            words = [str(word) for word in self.arguments(output, *extra)]
            told.append([str(prefix), words, {name: str(value) for name, value in variables.items()}])
        self.end(self.start(["-c", SEVERAL, json.dumps(told)]), timeout=120 * len(told))
        return [self._ended(prefix) for prefix in prefixes]

    def _ended(self, prefix):
        out, err, status = (
            Path(f"{prefix}.{name}").read_text(encoding="utf-8") for name in ("out", "err", "status")
        )
        return Ended(int(status), out, err, _calls(Path(f"{prefix}.jsonl")))

    def instances(self, count, output, *extra, replicas=None, **environment):
        """Runs of it under PopRun's environment, in `count` instances at once."""
        words = [ROOT / "run_pretraining.py", *self.arguments(output, *extra)]
        replicas = replicas or count
        processes = [
            self.start(words, **{**poprun(count, index, replicas), **environment}) for index in range(count)
        ]
        return [self.end(process) for process in processes]


def poprun(count, index, replicas, ipus_per_replica=2, port=29533):
    """The environment of one of PopRun's instances on this host."""
    return {
        "POPDIST_NUM_TOTAL_REPLICAS": replicas,
        "POPDIST_NUM_LOCAL_REPLICAS": replicas // count,
        "POPDIST_NUM_IPUS_PER_REPLICA": ipus_per_replica,
        "POPDIST_REPLICA_INDEX_OFFSET": index * (replicas // count),
        "OMPI_COMM_WORLD_SIZE": count,
        "OMPI_COMM_WORLD_RANK": index,
        "OMPI_COMM_WORLD_LOCAL_SIZE": count,
        "MASTER_PORT": port,
    }


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of documentation."""
    documents = []
    for name in ("argparse", "json", "pathlib", "pickle", "random", "tarfile"):
        lines = pydoc.plain(pydoc.render_doc(name)).splitlines()
        long = [line.strip(" |") for line in lines if len(line.split()) > 4 and " at 0x" not in line]
        documents.append("\n".join(long))
    path = tmp_path_factory.mktemp("corpus") / "documentation.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def stand_in(tmp_path, corpus, cache):
    programs = StandIn(tmp_path, corpus, cache)
    yield programs
    for process in programs.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
