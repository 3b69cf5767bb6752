"""`python -m ipu.simulator`: scripts, modules, options, and the program's environment, each in a process."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
DOOR = REPOSITORY / "ipu" / "simulator"
DROP_IN = DOOR / "dropin"


def environment(**variables):
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POPTORCH", "PYTHON", "IPU"))
    }
    return {**keep, **variables}


def door(*arguments, folder, status=0, stdin="", by=(DOOR,), **variables):
    """Runs the simulator's command line; `by`: how Python is pointed to it."""
    result = subprocess.run(
        [sys.executable, *map(str, by), *map(str, arguments)],
        cwd=folder,
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == status, result.stderr
    return result


def write(path, program):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(program))
    return path


AS_MODULE = ("-m", "ipu.simulator")


@pytest.mark.parametrize("way", ["from the repository", "PYTHONPATH", "path of the folder"])
def test_path_names_the_drop_in_and_nothing_else(tmp_path, way):
    if way == "from the repository":
        result = door("--path", folder=REPOSITORY, by=AS_MODULE)
    elif way == "PYTHONPATH":
        result = door("--path", folder=tmp_path, by=AS_MODULE, PYTHONPATH=str(REPOSITORY))
    else:
        result = door("--path", folder=tmp_path)
    assert result.stdout == f"{DROP_IN}\n"
    visible = {module.name for module in pkgutil.iter_modules([str(DROP_IN)])}
    assert visible == {"poptorch", "popdist", "popart", "ipu_simulator"}


def test_libraries_find_an_installed_poptorch(tmp_path):
    # As packages do that require `poptorch>=3.3` before they use its features.
    script = write(
        tmp_path / "ask.py",
        """
        import importlib.metadata, poptorch
        assert importlib.metadata.version("poptorch") == poptorch.__version__ == "3.4.0+simulator"
        """,
    )
    door(script, folder=tmp_path)


OURS = ("benchmarks", "command_line", "config", "data", "ipu", "model", "planning", "tests", "training")
LOOK = f"""
    import sys, subprocess
    import {", ".join(OURS)}
    assert all(module.mine for module in ({", ".join(OURS)}))
    import poptorch, popdist.poptorch, popart
    print(sys.argv, __name__, sys.stdin.read())
    print([entry for entry in sys.path if "site-packages" not in entry and "lib/python" not in entry])
    child = "import importlib.util; print(importlib.util.find_spec('poptorch').origin)"
    print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout, end="")
    sys.exit(7)
"""


@pytest.fixture
def program(tmp_path):
    """A program next to packages with the same names as ours."""
    folder = tmp_path / "program"
    for name in OURS:
        write(folder / name / "__init__.py", "mine = True\n")
    return write(folder / "look.py", LOOK)


@pytest.mark.parametrize("at_home", [True, False], ids=["from the repository", "from elsewhere"])
def test_a_script_runs_as_python_runs_it(program, tmp_path, at_home):
    """Arguments, input, exit status, folder and packages are the script's; only the drop-in is added."""
    mine = tmp_path / "mine"
    if at_home:
        ways = {"folder": REPOSITORY, "by": AS_MODULE, "PYTHONPATH": str(mine)}
    else:
        ways = {
            "folder": tmp_path,
            "by": AS_MODULE,
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, DROP_IN, mine))),
        }
    result = door(program, "-m", "--path", status=7, stdin="typed", **ways)
    lines = result.stdout.splitlines()
    assert lines[0] == f"{[str(program), '-m', '--path']} __main__ typed"
    assert lines[1] == str([str(program.parent), str(DROP_IN), str(mine)])
    assert lines[2] == str(DROP_IN / "poptorch" / "__init__.py")


def test_a_relative_script_beside_a_package_called_ipu(program):
    """There `-m ipu.simulator` would find the program's ipu: use the folder's path instead."""
    result = door("look.py", folder=program.parent, status=7)
    assert result.stdout.splitlines()[0] == "['look.py'] __main__ "


@pytest.mark.parametrize("where", ["current folder", "PYTHONPATH"])
def test_a_module_runs_as_python_runs_it(program, where):
    """Also from our repository, whose packages must not come before the program's on sys.path."""
    if where == "current folder":
        result = door("-m", "look", "a", folder=program.parent, status=7)
    else:
        ways = {"by": AS_MODULE, "PYTHONPATH": str(program.parent)}
        result = door("-m", "look", "a", folder=REPOSITORY, status=7, **ways)
    lines = result.stdout.splitlines()
    assert lines[0] == f"{[str(program), 'a']} __main__ "
    assert str(REPOSITORY) not in lines[1].replace(str(DROP_IN), "")


def test_first_line_says_that_a_simulator_is_at_work(tmp_path):
    script = write(tmp_path / "empty.py", "")
    first = door(script, folder=tmp_path).stderr.splitlines()[0]
    assert first == (
        "ipu.simulator: no IPU and no SDK in use; poptorch 3.4.0+simulator simulates pod16 (16 IPUs)"
    )
    first = door(script, folder=tmp_path, POPTORCH_IPU_MODEL="1").stderr.splitlines()[0]
    assert first.endswith("simulates Poplar's IPU model")


@pytest.mark.parametrize("by_hand", [True, False], ids=["PYTHONPATH", "front door"])
def test_the_line_comes_once_whoever_imports_poptorch(tmp_path, by_hand):
    """Also if the program starts processes that import poptorch: a child, and a loader's worker."""
    script = write(
        tmp_path / "children.py",
        """
        import subprocess, sys
        import poptorch
        subprocess.run([sys.executable, "-c", "import poptorch"], check=True)
        """,
    )
    if by_hand:
        command = [sys.executable, str(script)]
        variables = environment(PYTHONPATH=str(DROP_IN))
        result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    else:
        result = door(script, folder=tmp_path)
    assert result.stderr.count("no SDK in use") == 1
    assert result.stderr.startswith("ipu.simulator: no IPU")


def test_options_of_the_interpreter_are_kept(tmp_path):
    script = write(
        tmp_path / "flags.py",
        """
        import sys
        print(sys.flags.optimize, sys.flags.utf8_mode, sys.warnoptions, sys.stdout.write_through)
        """,
    )
    by = ("-O", "-u", "-X", "utf8", "-W", "error::FutureWarning")
    for way in ((DOOR,), AS_MODULE, ("-mipu.simulator",)):
        result = door(script, folder=tmp_path, by=(*by, *way), PYTHONPATH=str(REPOSITORY))
        assert result.stdout == "1 1 ['error::FutureWarning'] True\n"


def test_a_signal_reaches_the_program(tmp_path):
    script = write(
        tmp_path / "waits.py",
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        print("ready", flush=True)
        time.sleep(600)
        """,
    )
    command = [sys.executable, str(DOOR), str(script)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 5


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only Python's -P leaves the current folder out")
def test_commands_of_the_repository_run_beside_packages_with_our_names(program):
    """They run in a process with this repository on its path."""
    asked = door("validate", "--help", folder=program.parent).stdout
    assert asked.startswith("usage: python -m ipu.simulator validate")
    refused = door("fit", "absent.csv", folder=program.parent, status=2).stderr
    assert refused.startswith("ipu.simulator fit: ") and "absent.csv" in refused


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "nothing to run: name a script"),
        (
            ["train"],
            "'train' is neither a subcommand nor a script: a script ends in .py or is an existing path",
        ),
        (["absent.py"], "there is no script 'absent.py'"),
        (["--paht"], "unknown option '--paht'"),
        (["-m"], "-m needs the name of a module"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path, arguments, why):
    result = door(*arguments, folder=tmp_path, status=2)
    assert result.stdout == "" and result.stderr.startswith("ipu.simulator: ") and why in result.stderr


def test_an_isolated_interpreter_is_refused(tmp_path):
    """It ignores PYTHONPATH, so it wouldn't find the drop-in, but maybe another poptorch."""
    script = write(tmp_path / "empty.py", "")
    result = door(script, folder=tmp_path, status=2, by=("-I", DOOR))
    assert "hide PYTHONPATH" in result.stderr


HARDWARE = """
    import json, os, sys
    import poptorch
    for variables in json.loads(sys.argv[1]):
        os.environ.update(variables)
        print([poptorch.ipuHardwareIsAvailable(count) for count in (1, 4, 16, 17, 64, 65)], end=" ")
        try:
            print(poptorch.ipuHardwareVersion())
        except AssertionError as error:
            print(error)
"""


def test_hardware_is_that_of_the_target(tmp_path):
    """As the program was started, and as it changes its environment."""
    script = write(tmp_path / "hardware.py", HARDWARE)
    targets = [{}, {"IPU_SIMULATOR_TARGET": "pod4"}, {"POPTORCH_IPU_MODEL": "1"}]
    result = door(script, json.dumps(targets), folder=tmp_path)
    assert result.stdout.splitlines() == [
        "[True, True, True, False, False, False] 2",
        "[True, True, False, False, False, False] 2",
        "[False, False, False, False, False, False] No IPU hardware available on this system",
    ]
    result = door(script, "[{}]", folder=tmp_path, IPU_SIMULATOR_TARGET="bow-pod64")
    assert result.stdout == "[True, True, True, True, True, False] 2\n"


def test_an_unknown_target_is_refused_with_the_nearest(tmp_path):
    script = write(tmp_path / "hardware.py", HARDWARE)
    result = door(script, "[{}]", folder=tmp_path, status=2, IPU_SIMULATOR_TARGET="POD61")
    assert "IPU_SIMULATOR_TARGET is 'POD61'" in result.stderr and "nearest is 'pod6" in result.stderr
    # Also if the program found the drop-in without the simulator's command line.
    command = [sys.executable, str(script), "[{}]"]
    variables = environment(PYTHONPATH=str(DROP_IN), IPU_SIMULATOR_TARGET="pod32")
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "'pod32', which is not a known target" in result.stderr
