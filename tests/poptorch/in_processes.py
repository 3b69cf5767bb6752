"""Runs a test's `train(rank, processes)` in several processes that reduce their gradients."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.processes import held_port

_ROOT = Path(__file__).resolve().parents[2]


def train_in_processes(module: str, processes: int, folder: Path) -> list[Any]:
    """The results of the test module's `train` in each process, by rank."""
    code = (
        f"import sys, torch; from {module} import train; rank = int(sys.argv[1]);"
        f"torch.save(train(rank, {processes}), sys.argv[2])"
    )
    started: list[subprocess.Popen[bytes]] = []
    with held_port() as port, contextlib.ExitStack() as ends:
        for rank in range(processes):
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": str(processes),
            }
            command = [sys.executable, "-c", code, str(rank), str(folder / f"{rank}.pt")]
            started.append(subprocess.Popen(command, cwd=_ROOT, env=environment))
            ends.callback(_end, started[-1])
        # One that fails leaves the others waiting for it.
        deadline = time.monotonic() + 300
        while None in (statuses := [process.poll() for process in started]) and not any(statuses):
            assert time.monotonic() < deadline, "the processes wait for each other"
            time.sleep(0.05)
        assert statuses == [0] * processes
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(timeout=60)
