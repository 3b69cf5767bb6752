"""The next micro batch reuses freed memory: no page is requested from the system twice."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# Allocates and frees 40 MB: more than glibc keeps by default.
PROGRAM = """
import resource
import poptorch, torch

class Wide(torch.nn.Module):
    def forward(self, x):
        return (x.expand(10_000_000, 1) * 2 + 1).sum(), (x * 3).sum()

executor = poptorch.inferenceModel(Wide())
faults = []
for _ in range(6):
    executor(torch.ones(1, 1))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
# The least: a host under pressure may take pages back between two calls.
print(min(after - before for before, after in zip(faults[1:], faults[2:])))
"""


def page_faults_of_a_run(tmp_path, **environment):
    script = tmp_path / "wide.py"
    script.write_text(PROGRAM)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-m", "ipu.simulator", str(script)],
        cwd=ROOT,
        env={**kept, **environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_no_page_is_fetched_again_unless_the_user_has_set_up_the_allocator(tmp_path):
    kept = page_faults_of_a_run(tmp_path)
    users = page_faults_of_a_run(tmp_path, MALLOC_MMAP_MAX_="65536")
    # Huge pages would make few of 40 MB, but not none.
    assert kept * 10 + 5 < users
