"""Small real runs: text of the standard library, the runner itself."""

import contextlib
import os
import pydoc
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import run_pretraining

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of real documentation: one document per module, blank lines between them."""
    modules = (
        "argparse difflib json logging optparse pathlib pickle random statistics subprocess tarfile threading"
    )
    documents = []
    for name in modules.split():
        text = pydoc.plain(pydoc.render_doc(name))
        documents.append(
            "\n".join(
                line.strip(" |")
                for line in text.splitlines()
                if len(line.split()) > 4 and " at 0x" not in line
            )
        )
    path = tmp_path_factory.mktemp("corpus") / "documentation.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def flags(corpus, cache):
    """Flags of a run of a few seconds; `flags(output, extra...)` gives the whole command line."""

    def command_line(output, *extra, config="test_groupbert"):
        return [
            *("--config", config, "--output", str(output), "--corpus", str(corpus)),
            *("--cache-folder", str(cache), "--device", "simulator", "--no-progress-bar"),
            *("--validation-fraction", "0.2", "--preprocessing-workers", "0"),
            *(str(word) for word in extra),
        ]

    return command_line


# Dropout on, so that the device's random state matters as well.
STEPS = ("--training-steps", 8, "--checkpoint-steps", 4, "--eval-steps", 4, "--hidden-dropout", 0.1)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted") / "run"


@pytest.fixture
def reference(uninterrupted, flags):
    """The run of STEPS that nothing interrupted."""
    if not uninterrupted.exists():
        run_pretraining.main(flags(uninterrupted, *STEPS))
    return uninterrupted


@pytest.fixture
def started():
    """Starts processes. Each is killed when the test ends, or after minutes, with those that it started."""
    killers = []

    def end(process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def start(command, **options):
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, text=True, start_new_session=True, **options
        )
        killers.append((process, threading.Timer(240, end, (process,))))  # a test may read its output
        killers[-1][1].start()
        return process

    yield start
    for process, killer in killers:
        killer.cancel()
        killer.join(timeout=60)
        end(process)
        process.communicate(timeout=60)


@pytest.fixture
def program(started):
    """Starts the runner as a user would; returns the process."""

    def start(arguments):
        # As many threads as here: they decide the order of float32 sums.
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [sys.executable, ROOT / "run_pretraining.py", *arguments]
        return started(command, cwd=ROOT, env=environment, stderr=subprocess.STDOUT)

    return start
