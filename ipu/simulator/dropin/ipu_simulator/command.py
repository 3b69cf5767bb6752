"""The simulator's front door: runs a program with the drop-in packages in place of Graphcore's.

The program gets an interpreter of its own (exec), so that nothing of ours is in its sys.modules or on its
sys.path but the drop-in's folder; its process, standard streams, signals and exit status are this one's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from . import variables
from .environment import UnknownPrecision, UnknownTarget, announce, announcement

DROP_IN = Path(__file__).resolve().parents[1]
REPOSITORY = DROP_IN.parents[2]

# What Python itself answers with when it can't run what it was given.
_USAGE_STATUS = 2

USAGE = """\
usage: python -m ipu.simulator SCRIPT [ARGUMENT ...]
       python -m ipu.simulator -m MODULE [ARGUMENT ...]
       python -m ipu.simulator --profile FOLDER SCRIPT | -m MODULE [ARGUMENT ...]
       python -m ipu.simulator --custom-ops FILE.py SCRIPT | -m MODULE [ARGUMENT ...]
       python -m ipu.simulator --path
       python -m ipu.simulator validate ROWS.csv [--json FILE] [--markdown FILE]
       python -m ipu.simulator fit ROWS.csv

Runs a PopTorch program as `python SCRIPT` or `python -m MODULE` would, with the simulator's
poptorch, popdist and popart in place of Graphcore's. --profile writes reports on the first model that the
program compiles: does it fit into the IPUs' memory, how fast would it be, and why. --custom-ops brings
PyTorch functions in place of the program's own PopART operations. --path prints the folder that does the
same as this command when it is first on PYTHONPATH. validate predicts published step times, fit fits the
model's constants to them.

environment: IPU_SIMULATOR_TARGET=pod16 (the machine to stand for), IPU_SIMULATOR_PRECISION=ipu-float16
(compute as an IPU does, not in float32), POPTORCH_IPU_MODEL=1 (answer as PopTorch does on Poplar's IPU
model), and every variable that PopTorch reads"""


def main(arguments: list[str]) -> NoReturn:
    """Runs a command line, without the program's name. Exits with 2 where it can't be understood."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        sys.exit(0)
    if arguments == ["--path"]:
        print(DROP_IN)
        sys.exit(0)
    if not arguments:
        _refuse("there is nothing to run: name a script, or a module after -m")
    if arguments[0] in ("validate", "fit"):
        os.execv(sys.executable, [sys.executable, "-m", "planning.validate", *arguments])
    while arguments[0] in ("--profile", "--custom-ops"):
        arguments = (_profiled if arguments[0] == "--profile" else _with_custom_ops)(arguments[1:])
    if arguments[0] == "-m":
        _run_module(arguments[1:])
    _run_script(arguments)


def _profiled(arguments: list[str]) -> list[str]:
    """Has the program profiled; returns what comes after the folder."""
    if len(arguments) < 2:
        _refuse("--profile needs a folder for the reports, and then a script or -m MODULE")
    folder = Path(arguments[0]).resolve()
    if folder.exists() and not folder.is_dir():
        _refuse(f"--profile {arguments[0]!r} is a file: name a folder for the reports")
    variables.set_for_children(variables.PROFILE, str(folder))
    return arguments[1:]


def _with_custom_ops(arguments: list[str]) -> list[str]:
    """Names the functions for the program's own operations; returns what comes after the file."""
    if len(arguments) < 2:
        _refuse("--custom-ops needs a file of functions, and then a script or -m MODULE")
    file = Path(arguments[0]).resolve()
    if not file.is_file():
        _refuse(f"--custom-ops: there is no file {arguments[0]!r} in {Path.cwd()}")
    variables.set_for_children(variables.CUSTOM_OPS, str(file))
    return arguments[1:]


def _run_script(arguments: list[str]) -> NoReturn:
    script = arguments[0]
    if script.startswith("-"):
        _refuse(
            f"unknown option {script!r}: a script, -m MODULE, --profile, --custom-ops or --path is expected"
        )
    if not Path(script).exists():
        if script.endswith(".py"):
            _refuse(f"there is no script {script!r} in {Path.cwd()}")
        _refuse(
            f"{script!r} is no subcommand and no script: a script ends in .py or is an existing path; "
            "a module comes after -m"
        )
    _replace_process(arguments)


def _run_module(arguments: list[str]) -> NoReturn:
    if not arguments:
        _refuse("-m needs the name of a module")
    flags = []
    if Path.cwd() == REPOSITORY and not _is_ours(arguments[0]) and sys.version_info >= (3, 11):
        # `python -m` looks in the current folder first, and would give a program from elsewhere our packages.
        flags = ["-P"]
    _replace_process([*flags, "-m", *arguments])


def _is_ours(module: str) -> bool:
    first = module.split(".")[0]
    return (REPOSITORY / first).is_dir() or (REPOSITORY / f"{first}.py").is_file()


def _replace_process(arguments: list[str]) -> NoReturn:
    """Becomes the Python interpreter that this one is, with these arguments."""
    if sys.flags.ignore_environment:
        _refuse("Python's options -E and -I hide PYTHONPATH, on which the simulator's poptorch comes in")
    try:
        announcement()
    except (UnknownTarget, UnknownPrecision) as error:
        _refuse(str(error))
    announce()
    environment = {**os.environ, "PYTHONPATH": _python_path()}
    os.execve(sys.executable, [sys.executable, *_interpreter_options(), *arguments], environment)


def _python_path() -> str:
    """The drop-in, then what the user put there; our repository was only there to find this module."""
    before = os.environ.get("PYTHONPATH")
    # An empty entry among others is the current folder.
    entries = before.split(os.pathsep) if before else []
    users = [entry for entry in entries if Path(entry).resolve() not in (REPOSITORY, DROP_IN)]
    return os.pathsep.join([str(DROP_IN), *users])


def _interpreter_options() -> list[str]:
    """What stood between `python` and this program: -u, -O, -W ..., -X ..."""
    rest = len(sys.orig_argv) - (len(sys.argv) - 1)
    options = sys.orig_argv[1:rest]
    # Either "-m", "ipu.simulator" or a path; "-mipu.simulator" is one word as well.
    return options[:-2] if options[-2:-1] == ["-m"] else options[:-1]


def _refuse(why: str) -> NoReturn:
    print(f"ipu.simulator: {why}\n\n{USAGE}", file=sys.stderr)
    sys.exit(_USAGE_STATUS)
