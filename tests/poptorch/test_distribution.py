"""The distribution poptorch-simulator: its wheel, installed in an environment with only torch."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import ipu_simulator
import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
DROP_IN = REPOSITORY / "ipu" / "simulator" / "dropin"
PROGRAMS = Path(__file__).parent / "foreign"
PACKAGES = ("poptorch", "popdist", "ipu_simulator", "poptorch-3.4.0+simulator.dist-info")
FOLDER = "poptorch_simulator"


def requirements(name: str) -> set[str]:
    """An installed distribution and its requirements, without extras, in this environment."""
    found, new = set(), {name}
    while new:
        found |= new
        needed = [
            Requirement(text) for each in new for text in importlib.metadata.requires(each) or [] if each
        ]
        new = {each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})}
        new -= found
    return found


class Environment:
    """A virtual environment whose packages are links to this environment's."""

    def __init__(self, folder: Path, *distributions: str) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        self.bin = folder / "bin"
        (self.site,) = folder.glob("lib/python*/site-packages")
        for distribution in set().union(*map(requirements, distributions)):
            files = importlib.metadata.files(distribution) or []
            for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
                target = Path(str(importlib.metadata.distribution(distribution).locate_file(top)))
                if not (self.site / top).exists():
                    (self.site / top).symlink_to(target)

    def run(self, *command: object, folder: Path, status: int = 0, **variables: str):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("POPTORCH", "PYTHON", "PYTEST", "IPU"))
        }
        program, *arguments = map(str, command)
        result = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=folder,
            env={**kept, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == status, result.stderr + result.stdout
        return result

    def install(self, wheel: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet")
        subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run([*build, "--wheel-dir", str(folder), str(DROP_IN)], check=True, timeout=120)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def torch_only(tmp_path_factory, wheel) -> Environment:
    """An environment with only the simulator, torch and pytest."""
    environment = Environment(tmp_path_factory.mktemp("environment"), "torch", "pytest")
    environment.install(wheel)
    assert not (environment.site / "numpy").exists()
    return environment


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_the_wheel_has_every_file_of_the_packages(wheel):
    """Including data files and py.typed; site-packages gets no `poptorch`."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        f"{FOLDER}/{path.relative_to(DROP_IN)}"
        for package in PACKAGES
        for path in (DROP_IN / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith(f"{FOLDER}/")} == {*expected, f"{FOLDER}/popart.py"}
    assert {f"{FOLDER}/{name}/py.typed" for name in ("poptorch", "popdist", "ipu_simulator")} <= expected
    rest = {name.split("/")[0] for name in names} - {FOLDER}
    assert rest == {f"{FOLDER}.pth", f"{FOLDER}-{ipu_simulator.__version__}.dist-info"}


def test_versions_are_stated_once():
    root = (REPOSITORY / "pyproject.toml").read_text()
    assert f'\nversion = "{ipu_simulator.__version__}"\n' in root
    metadata = (DROP_IN / f"poptorch-{ipu_simulator.POPTORCH_VERSION}.dist-info" / "METADATA").read_text()
    assert f"\nVersion: {ipu_simulator.POPTORCH_VERSION}\n" in metadata
    assert (DROP_IN / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()


def test_any_program_imports_it(torch_only, tmp_path):
    """With plain `python`, as a notebook or a service would; libraries see an installed poptorch."""
    script = write(
        tmp_path / "look.py",
        """
        import importlib.metadata as metadata, sys
        import poptorch, popdist.poptorch, popart
        assert metadata.version("poptorch") == poptorch.__version__ == "3.4.0+simulator"
        print(metadata.version("poptorch-simulator"))
        """,
    )
    result = torch_only.run("python", script, folder=tmp_path)
    assert result.stdout == f"{ipu_simulator.__version__}\n"
    # torch itself warns that there is no numpy.
    assert "\npoptorch-simulator: no IPU and no SDK in use; poptorch 3.4.0+simulator" in f"\n{result.stderr}"


def test_the_command_runs_a_foreign_program(torch_only, tmp_path):
    """A program that needs only torch, in an environment without numpy."""
    result = torch_only.run("poptorch-simulator", PROGRAMS / "pipelined_transformer.py", folder=tmp_path)
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", result.stdout).groups())
    assert last < first


def test_the_command_names_itself(torch_only, tmp_path):
    out = torch_only.run("poptorch-simulator", "--help", folder=tmp_path).stdout
    assert out.startswith("usage: poptorch-simulator SCRIPT") and "ipu.simulator" not in out
    assert "validate" not in out
    path = torch_only.run("poptorch-simulator", "--path", folder=tmp_path).stdout
    assert path == f"{torch_only.site / FOLDER}\n"
    error = torch_only.run("poptorch-simulator", "absent.py", folder=tmp_path, status=2).stderr
    assert error.startswith("poptorch-simulator: there is no script 'absent.py'")


def test_another_projects_tests_run(torch_only, tmp_path):
    """With plain `pytest`, and through the command; the project's packages have the same names as ours."""
    write(
        tmp_path / "model" / "__init__.py",
        """
        import torch

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(4, 1)

            def forward(self, x, y):
                out = self.linear(x)
                return out, torch.nn.functional.mse_loss(out, y)
        """,
    )
    write(
        tmp_path / "tests" / "test_training.py",
        """
        import poptorch
        import torch
        from model import Model

        def test_the_loss_falls():
            torch.manual_seed(0)
            options = poptorch.Options().deviceIterations(2)
            options.Training.gradientAccumulation(2)
            model = Model()
            optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
            training = poptorch.trainingModel(model, options, optimizer)
            x = torch.randn(16, 4)
            losses = [float(training(x, x.sum(1, keepdim=True))[1].mean()) for _ in range(20)]
            assert losses[-1] < losses[0] / 10
        """,
    )
    for command in (["python", "-m", "pytest"], ["poptorch-simulator", "-m", "pytest"]):
        result = torch_only.run(*command, "-q", folder=tmp_path)
        assert "1 passed" in result.stdout


NEEDS_NUMPY = """
    import poptorch, torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)

        def forward(self, x):
            return poptorch.identity_loss(self.linear(x).square(), "mean")

    options = poptorch.Options()
    options.Precision.enableStochasticRounding(True)
    model = Model().half()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    poptorch.trainingModel(model, options, optimizer)(torch.ones(2, 4).half())
"""


def test_missing_packages_are_named(torch_only, tmp_path):
    script = write(tmp_path / "train.py", NEEDS_NUMPY)
    torch_only.run("python", script, folder=tmp_path)
    error = torch_only.run(
        "python", script, folder=tmp_path, status=1, IPU_SIMULATOR_PRECISION="ipu-float16"
    ).stderr
    assert "stochastic rounding needs numpy, which isn't installed: pip install numpy" in error
    profile = ("poptorch-simulator", "--profile", "reports", script)
    error = torch_only.run(*profile, folder=tmp_path, status=2).stderr
    assert "--profile needs numpy, not installed here: pip install numpy" in error
    error = torch_only.run("python", "-c", "import poptorch.simulator", folder=tmp_path, status=1).stderr
    assert "a verdict needs numpy, which isn't installed: pip install numpy" in error


WHOSE = "import poptorch; print(poptorch.__version__)"


@pytest.fixture
def with_graphcores(tmp_path, wheel):
    """A function that creates an environment with the simulator and a fake of Graphcore's PopTorch."""

    def make(beside: bool) -> Environment:
        environment = Environment(tmp_path / "environment", "torch")
        environment.install(wheel)
        folder = environment.site if beside else tmp_path / "sdk"
        write(folder / "poptorch" / "__init__.py", "__version__ = '3.4.0+graphcore'\n")
        if not beside:
            (environment.site / "zz_sdk.pth").write_text(f"{folder}\n")
        return environment

    return make


def test_graphcores_poptorch_wins_in_the_same_folder(with_graphcores, tmp_path):
    """Neither overwrites the other's files; the command selects the simulator."""
    environment = with_graphcores(beside=True)
    script = write(tmp_path / "whose.py", WHOSE)
    assert environment.run("python", script, folder=tmp_path).stdout == "3.4.0+graphcore\n"
    chosen = environment.run("poptorch-simulator", script, folder=tmp_path)
    assert chosen.stdout == "3.4.0+simulator\n"
    # The simulator's popart with Graphcore's poptorch would be a mixture.
    error = environment.run("python", "-c", "import popart", folder=tmp_path, status=1).stderr
    assert "there are two packages called poptorch" in error


def test_graphcores_poptorch_further_down_the_path_is_not_shadowed(with_graphcores, tmp_path):
    environment = with_graphcores(beside=False)
    script = write(tmp_path / "whose.py", WHOSE)
    error = environment.run("python", script, folder=tmp_path, status=1).stderr
    assert f"there are two packages called poptorch: {tmp_path / 'sdk' / 'poptorch'}" in error
    assert "only if asked to: poptorch-simulator SCRIPT" in error
    chosen = environment.run("poptorch-simulator", script, folder=tmp_path)
    assert chosen.stdout == "3.4.0+simulator\n"
    path = str(environment.site / FOLDER)
    chosen = environment.run("python", script, folder=tmp_path, PYTHONPATH=path)
    assert chosen.stdout == "3.4.0+simulator\n"
