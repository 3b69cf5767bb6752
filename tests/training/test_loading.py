"""A loader's worker whose run was killed leaves no traceback in the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training import loading

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError(), EOFError(), KeyError("ours")])
def test_a_lost_connection_is_told_only_after_the_worker_would_have_ended(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    happened: list[object] = []
    monkeypatch.setattr(loading.time, "sleep", happened.append)
    hook = loading.after_its_run(lambda kind, value, trace: happened.append(value))
    hook(type(error), error, None)
    waited_s = happened[:-1]
    assert happened[-1] is error
    assert waited_s == ([] if isinstance(error, KeyError) else [30.0])


# The run is killed and leaves half a message of multiprocessing's exchange of tensors.
KILLED = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "ipu" / "simulator" / "dropin")!r}]
import multiprocessing
import socket
from multiprocessing import resource_sharer
from training import loading

def work(sender):
    loading.end_with_run(0)
    duplicate = resource_sharer.DupFd(sys.stdout.fileno())
    sender.send((os.getpid(), duplicate._id[0]))
    signal.pause()

if __name__ == "__main__":
    receiver, sender = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=work, args=(sender,)).start()
    number, address = receiver.recv()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    print(number, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_traceback_of_its_worker() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        said, errors = run.communicate(timeout=120)  # until the worker has ended too
    assert said.strip().isdigit() and run.returncode == -9
    assert "Traceback" not in errors
