"""What reaches a program from outside: Ctrl-C before a run has begun, a terminal without all letters."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import command_line
import config as configuration
import model as models
from tests.old_hosts import needs_verdict
from training.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# Sends itself the signal as soon as a module of the given name is looked for.
PROGRAM = """
import os, runpy, signal, sys

module, number, runner, *arguments = sys.argv[1:]

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), getattr(signal, number))

sys.meta_path.insert(0, Interrupt())
sys.path.insert(0, os.path.dirname(runner))
sys.argv = [runner, *arguments]
runpy.run_path(runner, run_name="__main__")
"""
PRETRAINING = ("run_pretraining.py", "--config", "test_groupbert", "--device", "simulator")
SQUAD = ("run_squad.py", "--score", "none.json", "--data", "none.json")
BENCHMARK = ("run_benchmark.py", "speed", "--only", "accumulation_64_vs_plain_loop")


@pytest.mark.parametrize(
    ("module", "number", "arguments", "status"),
    [
        ("command_line", "SIGINT", PRETRAINING, -signal.SIGINT),
        ("config.recipes", "SIGINT", SQUAD, -signal.SIGINT),
        ("yaml", "SIGINT", BENCHMARK, -signal.SIGINT),
        ("torch", "SIGINT", PRETRAINING, 130),
        ("data.squad", "SIGINT", SQUAD, 130),
        ("benchmarks.speed", "SIGINT", BENCHMARK, 130),
        ("command_line", "SIGTERM", PRETRAINING, -signal.SIGTERM),
        ("planning.dry_run", "SIGTERM", (*PRETRAINING, "--dry-run"), 130),
        # After PopTorch, which makes SIGTERM write the stacks of all threads.
        ("training", "SIGTERM", PRETRAINING, 130),
    ],
)
def test_a_signal_while_a_module_is_imported(
    tmp_path: Path, module: str, number: str, arguments: tuple[str, ...], status: int
) -> None:
    runner, *words = arguments
    command = [sys.executable, "-c", PROGRAM, module, number, str(ROOT / runner), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stderr
    name = "Ctrl-C" if number == "SIGINT" else number
    assert (done.stderr.startswith(f"stopped by {name} at once")) == (status == 130)
    assert len(done.stderr.splitlines()) == (status == 130), done.stderr


# Each loses an exception that a signal's handler raises, or turns it into another one.
LOSERS = {
    "a finalizer": "class Loser:\n    def __del__(self): tell()\ndef work():\n    Loser()",
    "a conversion": """
def work():
    try:
        tell()
    except BaseException as error:
        raise RuntimeError("converted") from error
""",
}
TWO_SIGNALS = """
import os, signal, sys
import command_line

def tell():
    os.kill(os.getpid(), signal.SIGTERM)

%s
def main(_):
    from training import stop_on_signals

    with stop_on_signals() as stop:
        if times == 1:
            work()
        with stop.deferred():
            tell()
            print("deferred", flush=True)
            work()

times = int(sys.argv[1])
sys.exit(command_line.run_as_program(main))
"""


@pytest.mark.parametrize("loser", LOSERS.values(), ids=LOSERS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_the_program_wherever_it_strikes(loser: str, times: int) -> None:
    command = [sys.executable, "-c", TWO_SIGNALS % loser, str(times)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 130, done.stderr
    assert done.stdout == ("deferred\n" if times == 2 else "")
    assert done.stderr.startswith("stopped by SIGTERM at once")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_terminal_without_a_letter_gets_its_number() -> None:
    program = "import command_line; command_line.run_as_program(lambda _: print('Rh\\xf4ne'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "Rh\\xf4ne\n"), done.stderr


def test_a_reader_that_ends_is_told_without_a_traceback() -> None:
    """As with `| head -1`: the pipe has no reader when the second line comes."""
    program = """
import os, command_line
def main(_):
    read, write = os.pipe()
    os.dup2(write, 1)
    os.close(read)
    print("a line", flush=True)
raise SystemExit(command_line.run_as_program(main))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr == "error: broken pipe: the program reading our output has exited\n"


@needs_verdict
def test_a_verdict_that_fails_after_a_run_does_not_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration.load("test_bert", overrides={"device": "simulator"})
    flags = argparse.Namespace(config="test_bert")
    file = tmp_path / "file"
    file.touch()  # no folder to write a verdict to
    command_line.print_verdict(config, flags, file, {"samples_per_s": 1.0})
    said = capsys.readouterr().err
    assert said.startswith("warning: the run is saved, but its verdict can't be written: [Errno")
    assert said.count("\n") == 1 and str(file) in said
    monkeypatch.delattr("planning.dry_run.verdict_beside")  # as a fault of ours
    command_line.print_verdict(config, flags, tmp_path, {"samples_per_s": 1.0})
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "ImportError" in said
    assert said.endswith("the run is saved, but its verdict failed: see the error above\n")


def test_the_command_to_resume_with_names_the_launcher_that_started_the_run() -> None:
    """torchrun's, although popdist is told of the replicas in PopRun's variables."""
    program = """
import command_line, config
loaded = config.load("test_groupbert", overrides={"device": "simulator"})
device, instances = command_line.start(loaded)
print(instances.launcher)
"""
    variables = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.splitlines()[-1:] == ["torchrun --nproc_per_node 1"], done.stderr


@pytest.mark.parametrize("damage", ["cut", "other size", "gone", "a folder"])
@pytest.mark.parametrize("flag", ["--resume", "--checkpoint"])
def test_sizes_come_from_the_newest_checkpoint_that_is_good(tmp_path: Path, flag: str, damage: str) -> None:
    for step in (2, 4):
        save_checkpoint(
            tmp_path,
            step,
            save_model=lambda folder: models.save_pretrained(
                models.PretrainingModel(
                    models.ModelConfig(vocab_size=77, hidden_size=32, num_layers=2, num_heads=2), seed=1
                ),
                folder,
            ),
            optimizer_state={},
            state={"config": {}, "rng_state": [], "progress": {"record": {}, "evaluation_due": False}},
        )
    file = tmp_path / "checkpoints" / "step_00000004" / "config.json"
    text = file.read_text()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "gone":
        file.write_text(text[:50] if damage == "cut" else text.replace("77", "78"))
    parser = command_line.parser("", required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    configuration.add_flags(parser, "pretraining")
    start = [flag] if flag == "--resume" else [flag, str(tmp_path)]
    flags = parser.parse_args(["--config", "test_bert", "--output", str(tmp_path), *start])
    assert command_line.load_config(flags, "pretraining").vocab_size == 77
    assert flags.found[0] == "vocab_size 77, the checkpoint's (recipe: 1000)"
