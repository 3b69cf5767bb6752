"""Runs that are killed at random moments, once or twice, and resumed, must end as uninterrupted ones do.

A run is a fork of this process, which has imported everything: kills hit the work, not imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import command_line
import ipu
import run_pretraining
import run_squad
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.soak.fuzz import Figures, end_with_parent
from tests.soak.targets import tfrecord, tfrecord_example
from training import compare
from training.folder import step_folders

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 120  # of one run
_COMMON = ["--device", "simulator", "--no-progress-bar", "--eval-batches", "1", "--host-threads", "1"]
_PRETRAINING = ["--config", "test_groupbert", *_COMMON, "--training-steps", "8", "--checkpoint-steps", "2"]
_TEXT = ["--corpus", str(ROOT / "README.md"), "--validation-corpus", str(ROOT / "CONTRIBUTING.md")]
_TEXT += ["--vocab-size", "500"]


@dataclass(frozen=True)
class Kind:
    """`arguments` of a run, given a folder for its inputs. `fresh`: each run prepares its data anew."""

    main: Callable[..., object]
    arguments: Callable[[Path], list[str]]
    fresh: bool = False
    variables: tuple[tuple[str, str], ...] = ()


def _pretraining(_inputs: Path) -> list[str]:
    return [*_PRETRAINING, *_TEXT, "--preprocessing-workers", "0", "--dataloader-workers", "1"]


def _preprocessing(_inputs: Path) -> list[str]:
    steps = ["--training-steps", "2", "--checkpoint-steps", "1", "--preprocessing-workers", "2"]
    return ["--config", "test_groupbert", *_COMMON, *_TEXT, *steps]


def _wandb(inputs: Path) -> list[str]:
    return [*_pretraining(inputs), "--wandb"]


def _hub(inputs: Path) -> list[str]:
    """A data set of Hugging Face's library, from a local folder."""
    folder = inputs / "dataset"
    folder.mkdir(exist_ok=True)
    paragraphs = (ROOT / "README.md").read_text().split("\n\n")
    for split in ("train", "validation"):
        lines = [json.dumps({"text": paragraph}) for paragraph in paragraphs]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    texts = ["--corpus", f"hf:{folder}", "--validation-corpus", f"hf:{folder}", "--vocab-size", "500"]
    return [*_PRETRAINING, *texts, "--preprocessing-workers", "0"]


def _tfrecords(inputs: Path) -> list[str]:
    rng = random.Random(1)
    examples = [tfrecord(tfrecord_example(rng, length=32, predictions=5)) for _ in range(200)]
    (inputs / "examples.tfrecord").write_bytes(b"".join(examples))
    lengths = ["--sequence-length", "32", "--mask-tokens", "5", "--validation-fraction", "0.2"]
    return [*_PRETRAINING, "--corpus", str(inputs / "examples.tfrecord"), "--vocab-size", "500", *lengths]


def _fine_tuning(inputs: Path) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789_.?,"
    Tokenizer([*SPECIAL_TOKENS, *letters, *("##" + letter for letter in letters)]).save(inputs / "vocabulary")
    source = json.loads((ROOT / "data" / "squad" / "demo" / "validation.json").read_text())
    source["data"] = source["data"][:1]
    source["data"][0]["paragraphs"] = source["data"][0]["paragraphs"][:2]
    (inputs / "questions.json").write_text(json.dumps(source))
    words = [
        "--train-data",
        str(inputs / "questions.json"),
        "--validation-data",
        str(inputs / "questions.json"),
    ]
    words += ["--tokenizer", str(inputs / "vocabulary"), "--training-steps", "6", "--checkpoint-steps", "2"]
    return [
        "--config",
        "test_squad",
        "--device",
        "simulator",
        "--no-progress-bar",
        "--host-threads",
        "1",
        *words,
    ]


_OFFLINE = (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"))
KINDS = {
    "pretraining": Kind(run_pretraining.main, _pretraining),
    "fine-tuning": Kind(run_squad.main, _fine_tuning),
    "preprocessing": Kind(run_pretraining.main, _preprocessing, fresh=True),
    "W&B offline": Kind(
        run_pretraining.main, _wandb, variables=(("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"))
    ),
    "hf: corpus": Kind(run_pretraining.main, _hub, fresh=True),
    "TFRecord": Kind(run_pretraining.main, _tfrecords),
}


def _started(kind: Kind, words: list[str], log: Path, modules: Path | None = None) -> int:
    """Forks a run; returns its process number. The names of what it imported are written to `modules`."""
    number = os.fork()
    if number:
        return number
    status = 99
    try:
        end_with_parent()
        os.setsid()
        with log.open("ab", buffering=0) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.environ.update(kind.variables)
        sys.argv[1:] = words
        status = command_line.run_as_program(kind.main)
        if modules is not None:
            modules.write_text("\n".join(sys.modules))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _ended(number: int, after_s: float) -> int | None:
    """The status of a process that ends within this time; None: it was killed then."""
    end = time.monotonic() + after_s
    while time.monotonic() < end:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return None


class Killing:
    """Runs of a kind that are killed and resumed; the first one, the reference, isn't."""

    def __init__(self, name: str, folder: Path) -> None:
        ipu.select_device("simulator")
        self._name, self._kind, self._folder = name, KINDS[name], folder
        inputs = folder / "inputs"
        inputs.mkdir(parents=True)
        self._plain = self._kind.arguments(inputs)
        self._reference, self._cache = folder / "reference", folder / "cache"
        modules, log = folder / "modules", folder / "reference.log"
        words = [*self._plain, "--cache-folder", str(self._cache), "--output", str(self._reference)]
        status = _ended(_started(self._kind, words, log, modules), MOST_SECONDS)
        assert status == 0, log.read_text()
        # What a run imports on its way takes half of its time: import it once, in the parent of all.
        for module in modules.read_text().splitlines():
            if module not in sys.modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(module)
        began = time.monotonic()
        words[words.index(str(self._reference))] = str(folder / "timed")
        words[words.index(str(self._cache))] = str(folder / "fresh" if self._kind.fresh else self._cache)
        assert _ended(_started(self._kind, words, log), MOST_SECONDS) == 0, log.read_text()
        self._takes_s = time.monotonic() - began

    def runs(self, first: int, count: int, left_s: float) -> Figures:
        """Runs `first` to `first + count`, or as many as the time allows; `refused` counts kills."""
        deadline, figures = time.monotonic() + left_s, Figures()
        for number in range(first, first + count):
            if time.monotonic() > deadline:
                break
            kills, fault = self._run(number)
            figures.inputs += 1
            figures.refused += kills
            if fault:
                figures.faults.append((number, fault))
        return figures

    def _run(self, number: int) -> tuple[int, str]:
        """How often the run was killed, and what was wrong with it in the end."""
        rng, kind = random.Random(f"{self._name} {number}"), self._kind
        output, log = self._folder / f"run{number}", self._folder / f"run{number}.log"
        cache = self._folder / f"cache{number}" if kind.fresh else self._cache
        words = [*self._plain, "--cache-folder", str(cache), "--output", str(output)]
        status, kills = None, 0
        for _ in range(rng.randint(1, 2)):
            started = _started(kind, _continued(words, output), log)
            status = _ended(started, rng.uniform(0, 1.1 * self._takes_s))
            if status is not None:
                break
            kills += 1
        if status is None:
            status = _ended(_started(kind, _continued(words, output), log), MOST_SECONDS)
        if status == 2 and "add --resume" in log.read_text(errors="replace").splitlines()[-1]:
            # A checkpoint that was complete but for its name got its name when the run started.
            status = _ended(_started(kind, [*words, "--resume"], log), MOST_SECONDS)
        fault = _fault(status, log, self._reference, output)
        for path in (output, *([cache] if kind.fresh else [])):
            shutil.rmtree(path, ignore_errors=True)
        return kills, fault


def _continued(words: list[str], output: Path) -> list[str]:
    return [*words, "--resume"] if step_folders(output) else words


def _fault(status: int | None, log: Path, reference: Path, output: Path) -> str:
    said = log.read_text(errors="replace") if log.exists() else ""
    if "Traceback" in said:
        return f"status {status}, a traceback: {said[said.index('Traceback') :][:2000]}"
    if status != 0:
        return f"status {status}: {said[-2000:]}"
    with contextlib.suppress(ValueError):
        _, differences, _ = compare.compare(reference, output)
        return "; ".join(differences)
    return "nothing in common with the uninterrupted run"
