"""Spawned processes when their parent is killed, or gets a signal, at each moment of their start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

# The parent is killed after it has written a share of the arguments, which differs by script.
KILLED = """
import multiprocessing.popen_spawn_posix as popen, os, signal
import data.workers

class Killed:
    def __init__(self, pipe, *_, **__):
        self.pipe = pipe
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def write(self, content):
        os.write(self.pipe, content[: {written}])
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    popen.open = Killed
    data.workers.SpawnContext().Process(target=print, args=("worked",)).start()
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Ends when no process holds its output any more, so not before the children end."""
    (folder / "script.py").write_text(script)
    return subprocess.run(
        [sys.executable, str(folder / "script.py")],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("written", ["0", "len(content) // 3", "len(content) - 1"])
def test_a_worker_whose_parent_is_killed_in_its_start_is_silent(written: str, tmp_path: Path) -> None:
    done = run(KILLED.format(written=written), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", "")


def test_an_error_in_a_workers_start_is_shown(tmp_path: Path) -> None:
    """While the parent lives."""
    script = """
import data.workers
if __name__ != "__main__":
    import no_such_module
if __name__ == "__main__":
    worker = data.workers.SpawnContext().Process(target=print)
    worker.start()
    worker.join(60)
    print(worker.exitcode)
"""
    done = run(script, tmp_path)
    assert done.stdout == "1\n"
    assert "No module named 'no_such_module'" in done.stderr


def test_a_signal_while_workers_start_waits_for_the_pool(tmp_path: Path) -> None:
    """SIGTERM to the main process alone, between the start of a worker and that of the thread that gives the
    workers work: they would wait for it until they are killed, and the process whose start was interrupted
    for its arguments."""
    script = f"""
import os, signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from data.corpora import open_corpus
from data.make_shards import PairParameters, prepare_shards
from data.tokenizer import SPECIAL_TOKENS, Tokenizer

original = ProcessPoolExecutor._adjust_process_count

def start(pool):
    original(pool)
    print("started")
    os.kill(os.getpid(), signal.SIGTERM)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ProcessPoolExecutor._adjust_process_count = start
    try:
        prepare_shards(
            open_corpus({str(ROOT / "README.md")!r}),
            Tokenizer([*SPECIAL_TOKENS, *"etaoin"]),
            PairParameters(
                sequence_length=64, short_sequence_probability=0.1, validation_fraction=0.2, seed=7
            ),
            Path({str(tmp_path / "cache")!r}),
            workers=2,
            progress=False,
        )
    except KeyboardInterrupt:
        print("interrupted")
"""
    done = run(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\ninterrupted\n", "")
