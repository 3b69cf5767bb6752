"""`python -m ipu.simulator`, or `python path/to/ipu/simulator` if another package is called ipu.

Runs programs like the installed command `poptorch-simulator`. `validate` and `fit` exist only here: they need
the application's models, so they run as a process with the repository on its path.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

if sys.version_info < (3, 10):  # noqa: UP036 (an IPU host has 3.8)
    found = ".".join(map(str, sys.version_info[:3]))
    print(
        f"error: the simulator needs Python 3.10 or newer, but this is Python {found}: start it with another "
        "one in which requirements.txt is installed (docs/ipu_pod.md has the steps)",
        file=sys.stderr,
    )
    sys.exit(2)

sys.path.insert(0, str(Path(__file__).resolve().parent / "dropin"))

from ipu_simulator.command import FrontDoor

_REPOSITORY = Path(__file__).resolve().parents[2]
_DOOR = FrontDoor(
    "python -m ipu.simulator",
    repository=_REPOSITORY,
    more_usage="""
       python -m ipu.simulator validate ROWS.csv [--json FILE] [--markdown FILE]
       python -m ipu.simulator fit ROWS.csv""",
    more_help=""" validate predicts published step times, fit fits the
model's constants to them.""",
)


def _run_of_the_repository(arguments: list[str]) -> NoReturn:
    """Replaces this process by `planning.validate` for `validate ...` and `fit ...`."""
    # `python -m` searches the current folder first, which may have packages with our names; -P prevents it.
    flags = ["-P"] if sys.version_info >= (3, 11) else []
    path = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    os.execve(sys.executable, [sys.executable, *flags, "-m", "planning.validate", *arguments], environment)


if __name__ == "__main__":
    if sys.argv[1:2] in (["validate"], ["fit"]):
        _run_of_the_repository(sys.argv[1:])
    _DOOR.run(sys.argv[1:])
