"""`pip install .`: the wheel's content, its requirements and its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("installed")]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("groupbert_ipu-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=200
    )


def test_one_package_is_at_the_top(site: Path) -> None:
    names = {path.name for path in site.iterdir()}
    assert names == {"groupbert_ipu", next(name for name in names if name.endswith(".dist-info"))}
    code = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    assert run(site, code, "data", "model", "config", "ipu", "poptorch").stdout.strip() == "[]"
    assert not list(site.rglob("__pycache__")) and (site / "groupbert_ipu" / "configs.yml").is_file()


def test_it_has_every_tracked_file_of_its_folders(site: Path) -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip("this copy has no git")
    tops = {path.name for path in (site / "groupbert_ipu").iterdir()}
    tracked = {name for name in done.stdout.split("\0") if name.split("/")[0] in tops}
    home = site / "groupbert_ipu"
    packed = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert len(tracked) > 200 and not tracked - packed
    code = [name for name in done.stdout.split("\0") if re.fullmatch(r"[a-z_]+(\.py|/__init__\.py)", name)]
    left_out = {name.split("/")[0] for name in code} - tops - {"installed.py", "tests", "tools"}
    assert not left_out, "pyproject.toml doesn't put these into the wheel"


def test_it_requires_what_requirements_txt_names(site: Path) -> None:
    (metadata,) = site.glob("*.dist-info/METADATA")
    named = set(re.findall(r"^Requires-Dist: ([\w-]+)", metadata.read_text(), re.MULTILINE))
    pinned = set(re.findall(r"^([\w-]+)[=<>]", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {name.lower() for name in named} == {name.lower() for name in pinned}


@pytest.mark.parametrize("command", ["pretraining", "squad", "glue"])
def test_the_commands_run(site: Path, command: str) -> None:
    (entries,) = site.glob("*.dist-info/entry_points.txt")
    assert f"groupbert-{command} = groupbert_ipu:{command}" in entries.read_text()
    done = run(site, f"import groupbert_ipu; groupbert_ipu.{command}()", "--list")
    assert done.returncode == 0 and "pod16" in done.stdout, done.stderr
    done = run(site, f"import groupbert_ipu; groupbert_ipu.{command}()", "--version")
    assert done.stdout.startswith("groupbert-ipu ")
