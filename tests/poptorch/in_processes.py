"""Runs a test's `train(rank, processes)` in several processes that reduce their gradients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parents[2]


def train_in_processes(module: str, processes: int, folder: Path) -> list[Any]:
    """The results of the test module's `train` in each process, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        f"import sys, torch; from {module} import train; rank = int(sys.argv[1]);"
        f"torch.save(train(rank, {processes}), sys.argv[2])"
    )
    started = []
    try:
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
        assert [process.wait(timeout=600) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]
