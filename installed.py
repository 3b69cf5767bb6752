"""The application after `pip install .`: its runners as commands.

The wheel puts the application into the folder groupbert_ipu of site-packages, and this file there as its
`__init__.py`. So `data`, `model` and the other packages can be imported in processes of these commands only,
and hide no other project's. The simulator alone is a distribution: `pip install ./ipu/simulator/dropin`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent


def pretraining() -> None:
    """groupbert-pretraining: run_pretraining.py."""
    _run("run_pretraining.py")


def squad() -> None:
    """groupbert-squad: run_squad.py."""
    _run("run_squad.py")


def glue() -> None:
    """groupbert-glue: run_glue.py."""
    _run("run_glue.py")


def inference() -> None:
    """groupbert-inference: run_inference.py."""
    _run("run_inference.py")


def benchmark() -> None:
    """groupbert-benchmark: run_benchmark.py."""
    _run("run_benchmark.py")


def _run(script: str) -> None:
    sys.path.insert(0, str(HOME))
    sys.argv[0] = str(HOME / script)
    runpy.run_path(sys.argv[0], run_name="__main__")
