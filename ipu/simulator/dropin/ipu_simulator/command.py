"""The simulator's command line: runs a program with the drop-in packages instead of Graphcore's.

The program gets a new interpreter (exec), so none of our modules are in its sys.modules, and only the
drop-in's folder is on its sys.path. Process id, standard streams, signals and exit status stay the same.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from . import compare_command, variables
from .environment import BadVariables, announce, check_variables, say
from .host import NAME
from .host_threads import choose_waiting

DROP_IN = Path(__file__).resolve().parents[1]

# Packages that the reports need in addition to torch.
_REPORTS_NEED = ("numpy", "jinja2")
# Python's exit status for a bad command line.
_USAGE_STATUS = 2

_USAGE = """\
usage: {program} SCRIPT [ARGUMENT ...]
       {program} -m MODULE [ARGUMENT ...]
       {program} --profile FOLDER SCRIPT | -m MODULE [ARGUMENT ...]
       {program} --custom-ops FILE.py SCRIPT | -m MODULE [ARGUMENT ...]
       {program} --path
       {program} compare A/verdict.json B/verdict.json [--worse-by SHARE] [--html FILE]{more_usage}

Runs a PopTorch program as `python SCRIPT` or `python -m MODULE` would, with the simulator's
poptorch, popdist and popart instead of Graphcore's. --profile writes reports on the first model that the
program compiles: whether it fits into the IPUs' memory, how fast it would be, and why. --custom-ops supplies
PyTorch functions for the program's custom PopART operations. --path prints the folder that has the same
effect as this command when it is first on PYTHONPATH. compare lays two verdicts side by side and exits with 1
if the second one is worse.{more_help}

environment: IPU_SIMULATOR_TARGET=pod16 (the machine to simulate), IPU_SIMULATOR_PRECISION=bfloat16
(fast matrix products), float32-onednn (float32 products that are faster on AMD), ipu-float16 (compute in
float16 as an IPU does) or ipu-float16-fast (the same without float16 partials, which is faster),
IPU_SIMULATOR_STRICT=1 (apply PopTorch's restrictions to libraries newer
than PopTorch too), IPU_SIMULATOR_MERGE=0 (run the micro batches of a weight update one by one),
POPTORCH_IPU_MODEL=1 (behave as PopTorch does on Poplar's IPU model), and every variable that PopTorch
reads"""


def main() -> NoReturn:
    """The command `poptorch-simulator`."""
    FrontDoor("poptorch-simulator").run(sys.argv[1:])


@dataclass(frozen=True)
class FrontDoor:
    """A command that runs programs on the simulator.

    `program`: the command that the user types. `repository`: a folder to remove from the program's path,
    because this command was found through it. `more_usage` and `more_help` are appended to the help.
    """

    program: str
    repository: Path | None = None
    more_usage: str = ""
    more_help: str = ""

    @property
    def usage(self) -> str:
        return _USAGE.format(program=self.program, more_usage=self.more_usage, more_help=self.more_help)

    def run(self, arguments: list[str]) -> NoReturn:
        """Runs a command line, given without the program's name. Exits with 2 on a usage error."""
        if arguments in (["--help"], ["-h"]):
            print(self.usage)
            sys.exit(0)
        if arguments == ["--path"]:
            print(DROP_IN)
            sys.exit(0)
        if arguments[:1] == ["compare"]:
            sys.exit(compare_command.run(self.program, arguments[1:]))
        if not arguments:
            self._refuse("nothing to run: name a script, or a module after -m")
        while arguments[0] in ("--profile", "--custom-ops"):
            option = self._profiled if arguments[0] == "--profile" else self._with_custom_ops
            arguments = option(arguments[1:])
        if arguments[0] == "-m":
            self._run_module(arguments[1:])
        self._run_script(arguments)

    def _profiled(self, arguments: list[str]) -> list[str]:
        """Turns profiling on; returns the arguments after the folder."""
        if len(arguments) < 2:
            self._refuse("--profile needs a folder for the reports, and then a script or -m MODULE")
        folder = Path(arguments[0]).resolve()
        if folder.exists() and not folder.is_dir():
            self._refuse(f"--profile {arguments[0]!r} is a file: name a folder for the reports")
        missing = [name for name in _REPORTS_NEED if importlib.util.find_spec(name) is None]
        if missing:
            names = " and ".join(missing)
            self._refuse(f"--profile needs {names}, not installed here: pip install {' '.join(missing)}")
        variables.set_for_children(variables.PROFILE, str(folder))
        return arguments[1:]

    def _with_custom_ops(self, arguments: list[str]) -> list[str]:
        """Registers the file of custom operations; returns the arguments after the file."""
        if len(arguments) < 2:
            self._refuse("--custom-ops needs a file of functions, and then a script or -m MODULE")
        file = Path(arguments[0]).resolve()
        if not file.is_file():
            self._refuse(f"--custom-ops: there is no file {arguments[0]!r} in {Path.cwd()}")
        variables.set_for_children(variables.CUSTOM_OPS, str(file))
        return arguments[1:]

    def _run_script(self, arguments: list[str]) -> NoReturn:
        script = arguments[0]
        if script.startswith("-"):
            self._refuse(
                f"unknown option {script!r}: a script, -m MODULE, --profile, --custom-ops or --path is "
                "expected"
            )
        if not Path(script).exists():
            if script.endswith(".py"):
                self._refuse(f"there is no script {script!r} in {Path.cwd()}")
            self._refuse(
                f"{script!r} is neither a subcommand nor a script: a script ends in .py or is an existing "
                "path; a module comes after -m"
            )
        self._replace_process(arguments)

    def _run_module(self, arguments: list[str]) -> NoReturn:
        if not arguments:
            self._refuse("-m needs the name of a module")
        flags = []
        in_repository = self.repository is not None and Path.cwd() == self.repository
        if in_repository and not self._is_ours(arguments[0]) and sys.version_info >= (3, 11):
            # `python -m` searches the current folder first: from elsewhere it would find our packages.
            flags = ["-P"]
        self._replace_process([*flags, "-m", *arguments])

    def _is_ours(self, module: str) -> bool:
        assert self.repository is not None
        first = module.split(".")[0]
        return (self.repository / first).is_dir() or (self.repository / f"{first}.py").is_file()

    def _replace_process(self, arguments: list[str]) -> NoReturn:
        """Replaces this process with the same Python interpreter, run with these arguments (exec)."""
        if sys.flags.ignore_environment:
            self._refuse(
                "Python's options -E and -I hide PYTHONPATH, on which the simulator's poptorch comes in"
            )
        try:
            check_variables()
        except BadVariables as error:
            self._refuse(str(error))
        announce()
        note = choose_waiting()
        if note:
            say(f"{NAME}: host threads {note}")
        environment = {**os.environ, "PYTHONPATH": self._python_path()}
        os.execve(sys.executable, [sys.executable, *_interpreter_options(), *arguments], environment)

    def _python_path(self) -> str:
        """The drop-in, then the user's entries, without the repository that this module came from."""
        before = os.environ.get("PYTHONPATH")
        # An empty entry means the current folder.
        entries = before.split(os.pathsep) if before else []
        users = [entry for entry in entries if Path(entry).resolve() not in (self.repository, DROP_IN)]
        return os.pathsep.join([str(DROP_IN), *users])

    def _refuse(self, why: str) -> NoReturn:
        print(f"{self.program.split()[-1]}: {why}\n\n{self.usage}", file=sys.stderr)
        sys.exit(_USAGE_STATUS)


def _interpreter_options() -> list[str]:
    """The options between `python` and this program: -u, -O, -W ..., -X ..."""
    rest = len(sys.orig_argv) - (len(sys.argv) - 1)
    options = sys.orig_argv[1:rest]
    # Either "-m", "ipu.simulator" or a path; "-mipu.simulator" is also valid.
    return options[:-2] if options[-2:-1] == ["-m"] else options[:-1]
