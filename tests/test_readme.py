"""README's commands, taken from README and run; and what `./dev demo` does with earlier demos."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.old_hosts import needs_verdict

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Of the table under "Try it", and the one whose output is shown.
COMMANDS = re.findall(r"^\| `(.+?)` \|", README[README.index("## Try it") :], re.MULTILINE)
SHOWN = re.search(r"^    \$ (.+)\n((?:    .*\n|\n)+)", README, re.MULTILINE)
SCRIPT = """
import poptorch, torch
model = poptorch.inferenceModel(torch.nn.Linear(4, 2))
print(tuple(model(torch.ones(3, 4)).shape))
"""


def started(command: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of README with the files that it names in `folder`."""
    if not (ROOT / ".venv").is_dir():
        pytest.skip("./dev would install the requirements: .venv isn't there")
    words = [
        str(folder / word) if word in ("reports", "your_script.py") else word for word in shlex.split(command)
    ]
    (folder / "your_script.py").write_text(SCRIPT)
    return subprocess.run([*words, *more], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_readme_has_the_commands_that_this_file_runs() -> None:
    assert [command.split()[:2] for command in COMMANDS] == [
        ["./dev", "demo"],
        ["./dev", "run"],
        ["./dev", "run"],
    ]
    assert SHOWN is not None and f"./dev run {SHOWN[1]}" in COMMANDS


@needs_verdict
def test_the_dry_run_prints_what_readme_shows(tmp_path: Path) -> None:
    assert SHOWN is not None
    done = started(f"./dev run {SHOWN[1]}", tmp_path, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    printed = {line.rstrip() for line in done.stdout.splitlines()}
    shown = [line[4:].rstrip() for line in SHOWN[2].splitlines()]
    assert not [line for line in shown if line and line.strip() != "..." and line not in printed]
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out" / "trace.json").is_file()


def test_the_example_report_has_the_numbers_that_readme_shows() -> None:
    """If not: `--dry-run --output docs/example` again, and a picture of its first screen."""
    assert SHOWN is not None
    report = (ROOT / "docs" / "example" / "report.html").read_text(encoding="utf-8")
    numbers = re.findall(r"headroom ([\d.]+ \w+)|time to train +(\S.*?)   ", SHOWN[2])
    assert len(numbers) >= 5
    assert not [number for pair in numbers for number in pair if number and number not in report]
    assert (ROOT / "docs" / "example" / "report.png").read_bytes().startswith(b"\x89PNG")


@needs_verdict
def test_a_program_of_the_readers_runs(tmp_path: Path) -> None:
    (command,) = [command for command in COMMANDS if "your_script.py" in command]
    done = started(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(3, 2)" in done.stdout
    assert list((tmp_path / "reports").rglob("report.html"))


@pytest.fixture
def dev(tmp_path: Path) -> ModuleType:
    """The script ./dev as a module, for another folder."""
    loader = importlib.machinery.SourceFileLoader("dev_script", str(ROOT / "dev"))
    spec = importlib.util.spec_from_loader("dev_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    module.ROOT = tmp_path
    return module


def test_a_demo_continues_where_it_was_interrupted(
    dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "output" / "demo"
    assert dev.demo_folder("demo") == (output, [])
    output.mkdir(parents=True)
    (output / "resolved.yml").touch()
    assert dev.demo_folder("demo") == (output, [])  # it was stopped before its first checkpoint
    assert capsys.readouterr().out == ""
    (output / "checkpoints" / "step_00000500").mkdir(parents=True)
    assert dev.demo_folder("demo") == (output, ["--resume"])
    assert "continuing the demo that was interrupted in output/demo" in capsys.readouterr().out
    (output / "summary.json").touch()
    assert dev.demo_folder("demo") == (tmp_path / "output" / "demo-2", [])
    assert "output/demo has a finished demo: this one goes to output/demo-2" in capsys.readouterr().out
    assert dev.demo_folder("squad_demo") == (tmp_path / "output" / "squad_demo", [])


def test_dev_run_says_what_it_needs() -> None:
    if not (ROOT / ".venv").is_dir():
        pytest.skip("./dev would install the requirements: .venv isn't there")
    for words, message in ((["run"], "needs a command"), (["run", "no-such-program"], "can't be started")):
        done = subprocess.run([ROOT / "dev", *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and message in done.stderr
