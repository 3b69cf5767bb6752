"""Golden facts: what a change of this program's structure has to leave as it was.

    python tests/golden.py record FOLDER [--root CHECKOUT] [--checkpoint-of OLD] [--only PATTERN ...]
    python tests/golden.py compare OLD NEW [--only PATTERN ...]

`record` runs every case against a checkout and writes CASE.json for each; `compare` prints all differences
and exits with 1 if there is one. A checkout is known by its command lines and its `poptorch` only, so the
same copy of this file records it before a change and after it. With --checkpoint-of, the checkout finishes
the run that the record OLD keeps half-way, in OLD/checkpoint_run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import golden_inputs as inputs
import torch
import yaml
from safetensors.torch import load_file

Facts = dict[str, Any]
_HERE = Path(__file__).resolve().parent
_TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
_OF_THE_DEVICE = ("IPU_SIMULATOR_", "POPTORCH_", "POPDIST_", "OMPI_", "PYTHON")
_FIXED = {
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"},
    **{"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TQDM_DISABLE": "1", "PYTHONIOENCODING": "utf-8"},
}
# Keys of metrics that say how fast this host was.
_SPEED = re.compile(r"per_s$|_s$|time|second")
# What a text may say differently each time: addresses, places in the source, this host's speed.
_VARYING = (
    (re.compile(r"0x[0-9a-f]{6,}"), "0x..."),
    (re.compile(r"\bIn \w+\.py:\d+:"), "In ...:"),
    (re.compile(r'File "[^"]*", line \d+'), "File ..."),
    (
        re.compile(r"^.*\b(measured on this host|on host .*\(measured\)).*", re.MULTILINE),
        "... measured on this host ...",
    ),
    (re.compile(r"\[\d\d:\d\d:\d\d\]"), "[...]"),
)


@dataclass(frozen=True)
class Desk:
    """Where a case works: the checkout, an empty folder, this record, and an older one to go on from."""

    root: Path
    folder: Path
    record: Path
    older: Path | None

    def run(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs Python with these words in the folder of the case."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_DEVICE)}
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=self.folder,
            env={**kept, **_FIXED, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def runner(self, line: str, *before: object) -> subprocess.CompletedProcess[str]:
        """Runs a command line of the checkout such as "run_squad.py --help"."""
        name, *words = shlex.split(line)
        return self.run(*before, self.root / name, *words)

    def simulator(self, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """python -m ipu.simulator"""
        return self.run("-m", "ipu.simulator", *shlex.split(line), PYTHONPATH=str(self.root), **variables)

    def inside(self, question: str) -> Facts:
        """What golden_poptorch.py answers in a process that has the checkout's poptorch."""
        drop_in = self.simulator("--path").stdout.strip()
        done = self.run("-P", _HERE / "golden_poptorch.py", question, PYTHONPATH=drop_in)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(self.plain(done.stdout))

    def plain(self, text: str) -> str:
        """A text without the paths of this machine and what varies."""
        for path, name in ((self.folder, "FOLDER"), (self.root, "ROOT"), (sys.executable, "PYTHON")):
            text = text.replace(str(path), name)
        for pattern, name in _VARYING:
            text = pattern.sub(name, text)
        return text

    def said(self, done: subprocess.CompletedProcess[str]) -> Facts:
        said = {"stdout": self.plain(done.stdout), "stderr": self.plain(done.stderr)}
        return {"status": done.returncode, **said}

    def found(self, name: str) -> list[Path]:
        """Files of the checkout by name, wherever they moved."""
        return sorted(path for path in self.root.rglob(name) if ".venv" not in path.parts)


Case = Callable[[Desk], Facts]


# ---- training


def tensors(path: Path) -> Facts:
    """SHA-256 of each tensor of a file: of its type, shape and bytes."""
    hashes = {}
    for name, tensor in load_file(str(path)).items():
        described = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        hashes[name] = hashlib.sha256(described + content).hexdigest()
    return hashes


def run_facts(desk: Desk, done: subprocess.CompletedProcess[str], run: Path) -> Facts:
    """What a training left: metrics, the last checkpoint, answers, and its verdict."""
    if done.returncode:
        return desk.said(done)
    facts: Facts = {"status": 0, "configuration": desk.plain((run / "resolved.yml").read_text())}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    facts["metrics"] = [
        {key: value for key, value in json.loads(line).items() if not _SPEED.search(key)} for line in lines
    ]
    checkpoints = sorted((run / "checkpoints").glob("step_*"))
    facts["checkpoints"] = [path.name for path in checkpoints]
    facts["files"] = sorted(path.name for path in checkpoints[-1].iterdir())
    for name in ("model.safetensors", "optimizer.safetensors"):
        facts[name] = tensors(checkpoints[-1] / name)
    for name in ("verdict.json", "predictions.json", "nbest_predictions.json"):
        if (run / name).exists():
            facts[name] = json.loads((run / name).read_text())
    return facts


def training(model: str, precision: str) -> Case:
    def case(desk: Desk) -> Facts:
        inputs.write_corpus(desk.folder)
        before = _TWO_PROCESSES if model == "two-processes" else ()
        done = desk.runner(inputs.TRAINING + inputs.MODELS[model] + inputs.AS_IPU[precision], *before)
        return run_facts(desk, done, desk.folder / "run")

    return case


def fine_tuning(precision: str) -> Case:
    def case(desk: Desk) -> Facts:
        inputs.write_corpus(desk.folder)
        inputs.write_questions(desk.folder / "train.json", 24)
        inputs.write_questions(desk.folder / "validation.json", 6)
        first = desk.runner(inputs.TRAINING + inputs.MODELS["groupbert"] + " --max-position-embeddings 512")
        if first.returncode:
            return desk.said(first)
        done = desk.runner(inputs.FINE_TUNING + inputs.AS_IPU[precision])
        return run_facts(desk, done, desk.folder / "squad")

    return case


def resuming(desk: Desk) -> Facts:
    """Finishes the run of an older record, or one that this record makes and keeps."""
    line = inputs.TRAINING + inputs.MODELS["groupbert"]
    kept = (desk.older or desk.record) / "checkpoint_run"
    if desk.older is None:
        inputs.write_corpus(desk.folder)
        started = desk.runner(line)
        if started.returncode:
            return desk.said(started)
        shutil.rmtree(desk.folder / "run" / "checkpoints" / "step_00000008")
        shutil.rmtree(desk.folder / "cache")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(desk.folder, kept)
    shutil.copytree(kept, desk.folder, dirs_exist_ok=True)
    return run_facts(desk, desk.runner(line + " --resume"), desk.folder / "run")


# ---- verdicts


def verdict(line: str) -> Case:
    """--dry-run: the verdict, its bytes, and what is printed of it."""

    def case(desk: Desk) -> Facts:
        done = desk.runner(line + " --dry-run --output out")
        return {**desk.said(done), **report(desk.folder / "out")}

    return case


def report(folder: Path) -> Facts:
    facts: Facts = {}
    for path in sorted(folder.rglob("verdict.json")):
        name = str(path.relative_to(folder))
        facts[name] = json.loads(path.read_text())
        facts[name + " bytes"] = hashlib.sha256(path.read_bytes()).hexdigest()
        facts[name + " trace"] = hashlib.sha256(path.with_name("trace.json").read_bytes()).hexdigest()
    return facts


def glue_verdicts(names: list[str]) -> Case:
    """No runner takes these recipes; the benchmarks judge them all the same."""

    def case(desk: Desk) -> Facts:
        done = desk.runner(f"run_benchmark.py verdicts --output out --configs {' '.join(names)}")
        content = json.loads((desk.folder / "out" / "verdicts.json").read_text())
        return {**desk.said(done), "verdicts.json": content}

    return case


def profile(program: str) -> Case:
    def case(desk: Desk) -> Facts:
        [script] = (path for path in desk.found(program) if path.parent.name == "foreign")
        launched = " ".join(_TWO_PROCESSES) if "instances" in program else ""
        argument = "saved" if "argparse" in script.read_text() else ""
        (desk.folder / "saved").mkdir()
        done = desk.simulator(f"--profile out {launched} {script} {argument}")
        facts = {**desk.said(done), **report(desk.folder / "out")}
        if launched:  # lines of two processes come in any order
            facts["stderr"] = sorted(facts["stderr"].splitlines())
        return facts

    return case


def validation(desk: Desk) -> Facts:
    """Published rows, from beside the checkout or from wherever in it they are."""
    beside = desk.root.parent / "shared" / "calibration.csv"
    rows = beside if beside.exists() else desk.found("published.csv")[0]
    shutil.copy(rows, desk.folder / "rows.csv")
    done = desk.simulator("validate rows.csv --json errors.json")
    errors = json.loads((desk.folder / "errors.json").read_text())
    return {**desk.said(done), "rows": rows.read_text(), "errors.json": errors}


def helps(desk: Desk) -> Facts:
    main = desk.runner("run_benchmark.py --help")
    commands = re.findall(r"^ {4}([a-z][a-z-]+)(?: |$)", main.stdout, re.MULTILINE)
    lines = ["run_pretraining.py", "run_squad.py", *(f"run_benchmark.py {name}" for name in commands)]
    facts = {line: desk.said(desk.runner(f"{line} --help")) for line in lines}
    return {**facts, "run_benchmark.py": desk.said(main), "simulator": desk.said(desk.simulator("--help"))}


def mistakes(runner: str) -> Case:
    """Each command line finds its files anew: the one before may have left something."""

    def case(desk: Desk) -> Facts:
        facts = {}
        for line in (line for line in inputs.MISTAKES if line.startswith(runner)):
            with another(desk) as apart:
                inputs.write_faulty_files(apart.folder)
                facts[line] = apart.said(apart.runner(line))
        return facts

    return case


def simulator_mistakes(desk: Desk) -> Facts:
    inputs.write_faulty_files(desk.folder)
    facts = {line: desk.said(desk.simulator(line)) for line in inputs.SIMULATOR_MISTAKES}
    for variables in ({"IPU_SIMULATOR_TARGET": "POD61"}, {"IPU_SIMULATOR_PRECISION": "half"}):
        facts[str(variables)] = desk.said(desk.simulator("good.py", **variables))
    return {**facts, "good": desk.said(desk.simulator("good.py"))}


# ---- the records


def cases(root: Path) -> dict[str, Case]:
    """All cases by name, the longest first."""
    runners = ("pretraining", "squad", "benchmark")
    made: dict[str, Case] = {f"errors-{name}": mistakes(f"run_{name}.py") for name in runners}
    for precision in inputs.AS_IPU:
        for model in inputs.MODELS:
            made[f"training-{model}-{precision}"] = training(model, precision)
        made[f"training-squad-{precision}"] = fine_tuning(precision)
    made["training-resumed"], made["errors-simulator"] = resuming, simulator_mistakes
    made |= {f"auto-{name}": verdict(inputs.SEARCHED + line) for name, line in inputs.SEARCHES.items()}
    programs = sorted(path.name for path in (root / "tests").rglob("foreign/*.py"))
    made |= {f"profile-{Path(program).stem}": profile(program) for program in programs}
    made |= {f"unfit-{name}": verdict(line) for name, line in inputs.DO_NOT_FIT.items()}
    recipes = yaml.safe_load((root / "configs.yml").read_text(encoding="utf-8"))
    made["verdicts-glue"] = glue_verdicts([name for name in recipes if name.startswith("glue_")])
    for name in recipes:
        if not name.startswith(("_", "glue_")):
            runner = "run_squad.py" if "squad" in name else "run_pretraining.py"
            made[f"verdict-{name}"] = verdict(f"{runner} --config {name}")
    made |= {"validate": validation, "help": helps}
    questions = ("graphs", "signatures", "errors")
    made |= {f"poptorch-{question}": lambda desk, q=question: desk.inside(q) for question in questions}
    return made


@contextlib.contextmanager
def another(desk: Desk) -> Iterator[Desk]:
    """The same desk with an empty folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="golden_") as folder:
        yield replace(desk, folder=Path(folder).resolve())


def record(flags: argparse.Namespace) -> int:
    """Writes the facts of every wanted case; 1 where one could not be asked."""
    flags.folder.mkdir(parents=True, exist_ok=True)
    folder, root, older = flags.folder.resolve(), flags.root.resolve(), flags.checkpoint_of
    desk = Desk(root, folder, folder, older and older.resolve())
    wanted = {name: case for name, case in cases(root).items() if is_wanted(name, flags.only)}

    def write(name: str) -> bool:
        start, facts = time.perf_counter(), {}
        try:
            with another(desk) as apart:
                facts = wanted[name](apart)
        except Exception:
            facts = {"failure": desk.plain(traceback.format_exc())}
        text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        failed = "failure" in facts
        print(f"{time.perf_counter() - start:6.1f} s  {name}{'  FAILED' if failed else ''}", flush=True)
        return failed

    with ThreadPoolExecutor(flags.jobs) as pool:
        return int(any(list(pool.map(write, wanted))))


def is_wanted(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """All values of nested facts by their place."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {} if inner else {path: value}
    for key, each in inner:
        found |= leaves(each, f"{path}/{key}")
    return found


def shortened(value: Any, other: Any) -> str:
    """A value from a little before the first place where it differs from the other."""
    text, against = repr(value), repr(other)
    same = next((at for at, (a, b) in enumerate(zip(text, against)) if a != b), 0)
    start = max(0, same - 40)
    return f"{'...' if start else ''}{text[start : start + 120]}{'...' if len(text) > start + 120 else ''}"


def compare(flags: argparse.Namespace) -> int:
    """Prints all differences of two records; 1 where there is one."""
    old, new = (
        {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
        for folder in (flags.old, flags.new)
    )
    equal = differences = 0
    for name in (names := sorted(name for name in {*old, *new} if is_wanted(name, flags.only))):
        before, after = (leaves(each.get(name, {"case": "is missing"})) for each in (old, new))
        for key in sorted({*before, *after}):
            one, other = before.get(key, "(missing)"), after.get(key, "(missing)")
            if one == other:
                equal += 1
                continue
            differences += 1
            print(f"{name}: {key}\n  old {shortened(one, other)}\n  new {shortened(other, one)}")
    print(f"{len(names)} cases: {equal} values are equal, {differences} differ")
    return int(differences > 0 or not equal)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("record", help="run the cases and write their facts")
    made.add_argument("folder", type=Path)
    made.add_argument("--root", type=Path, default=_HERE.parent, help="the checkout [this one]")
    made.add_argument("--checkpoint-of", type=Path, metavar="OLD", help="finish the run kept there")
    made.add_argument("--jobs", type=int, default=2, help="cases at a time [2]")
    made.set_defaults(run=record)
    beside = commands.add_parser("compare", help="print what differs between two records")
    beside.add_argument("old", type=Path)
    beside.add_argument("new", type=Path)
    beside.set_defaults(run=compare)
    for command in (made, beside):
        command.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="names of cases [all]")
    flags = parser.parse_args()
    return flags.run(flags)


if __name__ == "__main__":
    sys.exit(main())
