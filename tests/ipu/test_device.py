"""The choice of the device. Each case is a process of its own: the choice is made once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ipu

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
DROP_IN = REPOSITORY / "ipu" / "simulator" / "dropin"


def run(program, path=(), folder=REPOSITORY, **environment):
    """The program's output; `path` goes on PYTHONPATH."""
    path = os.pathsep.join(str(entry) for entry in path)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("POPTORCH", "PYTHON"))}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=folder,
        env={**keep, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def graphcore(tmp_path):
    """A stand-in for Graphcore's package: importable, with devices of the sizes that the environment says."""
    package = tmp_path / "site" / "poptorch"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text(
        "import os\n"
        "__version__ = '3.3.0'\n"
        "model_at_import = os.environ.get('POPTORCH_IPU_MODEL')\n"
        "def ipuHardwareIsAvailable(num_ipus=1):\n"
        "    sizes = os.environ.get('TEST_DEVICE_SIZES', '').split()\n"
        "    return str(num_ipus) in sizes\n"
    )
    return package.parent


def test_simulator_is_this_programs_own():
    choice = ipu.select_device("simulator")
    assert choice == ipu.select_device("simulator")
    assert Path(ipu.poptorch.__file__).parent.parent == DROP_IN
    assert choice.version == ipu.poptorch.__version__
    banner = choice.banner()
    assert banner.startswith("device: simulator (the simulator's poptorch, PopTorch 3.4 semantics;")
    assert "\n" not in banner


def test_a_second_choice_is_refused():
    ipu.select_device("simulator")
    with pytest.raises(ipu.DeviceError, match="process already uses 'simulator'"):
        ipu.select_device("ipu")
    with pytest.raises(ipu.DeviceError, match="unknown device 'gpu': choose one of auto, ipu,"):
        ipu.select_device("gpu")
    assert issubclass(ipu.DeviceError, ValueError)


@pytest.mark.parametrize("device", ["ipu", "ipu-model"])
@pytest.mark.parametrize("path", [(), (DROP_IN,)])
def test_no_sdk_is_an_error_and_not_a_fallback(device, path):
    """Also where the drop-in is on the path: it isn't taken for Graphcore's."""
    out = run(
        f"""
        import os, ipu
        try:
            ipu.select_device("{device}")
        except ipu.DeviceError as error:
            print(error, os.environ.get("POPTORCH_IPU_MODEL"))
        """,
        path,
    )
    assert "Source the enable scripts" in out and "--device simulator" in out and out.endswith("None")


def test_auto_takes_an_ipu_that_answers(graphcore):
    program = """
        import ipu
        print(ipu.poptorch.__file__)
        print(ipu.select_device("auto").banner())
    """
    file, banner = run(program, [graphcore], TEST_DEVICE_SIZES="1 2 4").splitlines()
    assert Path(file).parent.parent == graphcore
    assert banner == "device: ipu (Graphcore's PopTorch, poptorch 3.3.0); an IPU is available"


@pytest.mark.parametrize(
    "with_sdk, reason",
    [(True, "no IPU is available"), (False, "this CPU computes as IPUs would")],
)
def test_auto_says_why_it_simulates(graphcore, with_sdk, reason):
    program = """
        import ipu
        print(ipu.poptorch.__file__)
        print(ipu.select_device("auto").banner())
    """
    file, banner = run(program, [graphcore] if with_sdk else []).splitlines()
    assert Path(file).parent.parent == DROP_IN
    assert banner.startswith("device: simulator") and reason in banner


@pytest.mark.parametrize(("device", "why"), [("simulator", "requested"), ("auto", "but no IPU is available")])
def test_an_old_python_has_no_simulator(graphcore, device, why):
    """An IPU host's Python 3.8: what keeps the simulator away is said in words."""
    program = f"""
        import sys, ipu
        sys.version_info = (3, 8, 18)
        try:
            ipu.select_device("{device}")
        except ipu.DeviceError as error:
            print(error)
    """
    out = run(program, [graphcore])
    assert "the simulator needs Python 3.10 or newer, but this is 3.8" in out and why in out


@pytest.mark.parametrize(
    "start", ["runpy.run_module('ipu.simulator', run_name='__main__')", "import poptorch"]
)
def test_an_old_python_is_named_in_one_line(start):
    program = f"""
        import runpy, sys
        sys.stderr, sys.version_info = sys.stdout, (3, 8, 18)
        try:
            {start}
        except (SystemExit, ImportError) as end:
            print(type(end).__name__, end)
    """
    out = run(program, [DROP_IN])
    assert len(out.splitlines()) <= 2 and "needs Python 3.10 or newer, but this is Python 3.8.18" in out
    assert out.endswith("SystemExit 2") or out.startswith("ImportError")


def test_ipu_needs_an_ipu(graphcore):
    program = """
        import ipu
        try:
            print(ipu.select_device("ipu").name)
        except ipu.DeviceError as error:
            print(error)
    """
    assert "no IPU is available" in run(program, [graphcore])
    assert run(program, [DROP_IN, graphcore], TEST_DEVICE_SIZES="16") == "ipu"


@pytest.mark.parametrize("device", ["auto", "ipu"])
def test_compiling_ahead_needs_the_sdk_and_no_ipu(graphcore, device):
    program = f"""
        import ipu
        print(ipu.select_device("{device}", offline=True).banner())
    """
    expected = "device: ipu (Graphcore's PopTorch, poptorch 3.3.0); compile only, which needs no IPU"
    assert run(program, [graphcore]) == expected


def test_auto_stays_on_the_simulator_that_a_program_was_started_on(graphcore):
    """As the simulator's command runs it: where an IPU would answer."""
    program = """
        import ipu
        print(ipu.poptorch.__file__)
        print(ipu.select_device("auto").banner())
    """
    file, banner = run(program, [DROP_IN, graphcore], TEST_DEVICE_SIZES="16").splitlines()
    assert Path(file).parent.parent == DROP_IN
    assert "started on the simulator's poptorch" in banner


def test_the_target_of_a_run_is_that_of_its_simulator():
    program = """
        import ipu
        ipu.select_device("simulator", target="pod64")
        print(ipu.poptorch.ipuHardwareIsAvailable(64), ipu.poptorch.ipuHardwareIsAvailable(65))
    """
    assert run(program) == "True False"


def test_ipu_model_is_on_before_poptorch_is_imported(graphcore):
    program = """
        import ipu
        print(ipu.select_device("ipu-model").name, ipu.poptorch.model_at_import)
    """
    assert run(program, [graphcore]) == "ipu-model 1"


def test_a_poptorch_imported_before_the_choice(graphcore):
    program = """
        import poptorch, ipu
        try:
            ipu.select_device("{}")
        except ipu.DeviceError as error:
            print(error)
    """
    assert "another poptorch is already imported" in run(program.format("simulator"), [REPOSITORY, graphcore])
    assert "simulator's poptorch is already imported" in run(program.format("ipu"), [REPOSITORY, DROP_IN])
    assert "no IPU is available, and Graphcore's poptorch was imported" in run(
        program.format("auto"), [graphcore]
    )


def test_a_foreign_program_on_the_drop_in_sees_nothing_else_of_ours(tmp_path):
    """Its own modules may have our names, and no module of ours comes in their place."""
    for name in ("ipu", "model", "data"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    out = run(
        """
        import poptorch, ipu, model, data, sys
        import ipu_simulator
        print(ipu.mine and model.mine and data.mine, ipu_simulator.__name__, "torch" in sys.modules)
        """,
        [DROP_IN],
        folder=tmp_path,
    )
    assert out == "True ipu_simulator True"


def test_a_run_chooses_machine_and_precision_without_the_environment():
    out = run(
        """
        import os, ipu
        before = dict(os.environ)
        ipu.select_device("simulator", target="pod4", precision="ipu-float16")
        from ipu_simulator import environment
        print(environment.target().name, environment.precision())
        ipu.select_device("simulator", target="pod16")
        print(environment.target().name, environment.precision())
        changed = {name for name, value in os.environ.items() if before.get(name) != value}
        # For processes that it starts: the banner is printed, and what importing PopTorch always sets.
        print(changed <= {"IPU_SIMULATOR_ANNOUNCED", "RDMAV_FORK_SAFE"})
        """,
        IPU_SIMULATOR_TARGET="pod64",
    )
    assert out.splitlines() == ["pod4 ipu-float16", "pod16 ipu-float16", "True"]


def test_a_bad_variable_is_an_error_of_the_device_unless_it_is_replaced():
    program = """
        import ipu
        try:
            ipu.select_device("simulator", target="pod4")
            from ipu_simulator import environment
            print(environment.target().name)
        except ipu.DeviceError as error:
            print(error)
        """
    assert run(program, IPU_SIMULATOR_TARGET="pod61") == "pod4"
    expected = "IPU_SIMULATOR_STRICT is 'yes'; a whole number from 0 on is expected"
    assert run(program, IPU_SIMULATOR_STRICT="yes", IPU_SIMULATOR_TARGET="pod61") == expected


def test_the_facade_alone_imports_no_poptorch():
    assert run("import sys, ipu; print('poptorch' in sys.modules, 'torch' in sys.modules)") == "False False"
