"""The documentation is true of the tree: links, paths, commands, flags and recipes that it names exist.

Commands are lines of indented code blocks, and code spans. Scripts that stand for the reader's (`train.py`)
are skipped.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import config
import run_benchmark
import run_pretraining
import run_squad

ROOT = Path(__file__).resolve().parents[1]
DROP_IN = ROOT / "ipu" / "simulator" / "dropin"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ipu").rglob("*.md")])
FOLDERS = {
    path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("output", "cache", "wandb")
}
RUNNERS = {
    "run_pretraining.py": run_pretraining.main,
    "run_squad.py": run_squad.main,
    "run_benchmark.py": run_benchmark.main,
}
READERS_SCRIPTS = ("train.py", "your_script.py")
LAUNCHERS = ("python", "python3", "./dev", "torchrun", "poprun")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    broken = [link for link in links if "://" not in link and not _leads_somewhere(page, link)]
    assert not broken


@each_page
def test_paths_of_this_repository_exist(page: Path) -> None:
    spans = [word for span in _code_spans(page.read_text()) for word in span.split()]
    missing = [word for word in spans if _is_our_path(word) and not _exists(word)]
    assert not missing


@each_page
def test_commands_name_what_exists(page: Path) -> None:
    wrong = [f"{problem}: {command}" for command in _commands(page) for problem in _problems(command)]
    assert not wrong


def test_each_noun_of_the_glossary_is_where_it_says() -> None:
    rows = re.findall(r"\| `(\w+)` in `([\w/.]+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert rows and not [(noun, file) for noun, file in rows if not _defines(ROOT / file, noun)]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python run_nothing.py --config demo", "no script run_nothing.py"),
        ("python -m ipu.nothing", "no module ipu.nothing"),
        ("python run_pretraining.py --config demo --corpse x", "no flag --corpse"),
        ("python run_pretraining.py --config demmo", "no recipe demmo"),
        ("python run_benchmark.py spede", "no subcommand spede"),
        ("./dev tests", "no command ./dev tests"),
        ("./dev run python run_nothing.py --config demo", "no script run_nothing.py"),
        ("poprun --num-replicas 4 python run_nothing.py", "no script run_nothing.py"),
    ],
)
def test_a_wrong_command_is_found(command: str, problem: str) -> None:
    assert list(_problems(command)) == [problem]


def _defines(file: Path, noun: str) -> bool:
    """As a class, a name or a field."""
    return bool(re.search(rf"^class {noun}\b|^{noun} = |^    {noun}: ", file.read_text(), re.MULTILINE))


# Links and paths.


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    return not anchor or anchor in {_slug(line) for line in _headings(target.read_text())}


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _code_spans(text: str) -> list[str]:
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return re.findall(r"`([^`]+)`", prose)


def _is_our_path(word: str) -> bool:
    first, slash, _ = word.partition("/")
    if slash:
        return first in FOLDERS and re.fullmatch(r"[\w./*+-]+(::\w+)?", word) is not None
    return re.fullmatch(r"(test|run)_[\w*]+\.py", word) is not None


def _exists(word: str) -> bool:
    path = word.split("::")[0].rstrip("/")
    if path.startswith("test_"):  # a neighbour of one that was named with its folder
        return any((ROOT / "tests").rglob(path))
    return any(ROOT.glob(path))


# Commands.


def _commands(page: Path) -> list[str]:
    text = re.sub(r" *\\\n *", " ", page.read_text())
    lines = [re.sub(r"^\$ ", "", line.strip()) for line in text.splitlines() if line.startswith("    ")]
    candidates = [*lines, *_code_spans(text)]
    return [line for line in candidates if _starts_a_program(line)]


def _starts_a_program(line: str) -> bool:
    words = _without_variables(line.split())
    return len(words) > 1 and words[0] in LAUNCHERS


def _without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=\S*$", words[0]):
        words = words[1:]
    return words


def _problems(command: str) -> Iterator[str]:
    command = re.split(r"   +", command)[0]  # two columns: a command, and what it does
    words = _without_variables(shlex.split(command, comments=True))
    if words[0] == "./dev":
        if f"./dev {words[1]}" not in (ROOT / "dev").read_text():
            yield f"no command {words[0]} {words[1]}"
        elif words[1] == "run" and _starts_a_program(" ".join(words[2:])):
            yield from _problems(shlex.join(words[2:]))
        return
    if words[0] in ("torchrun", "poprun"):  # what they start comes after their own flags
        starts = [at for at, word in enumerate(words) if word == "python" or word.endswith(".py")]
        words = words[starts[0] :] if words[starts[0]] == "python" else ["python", *words[starts[0] :]]
    if words[1] == "-c":
        return
    if words[1] == "-m":
        if not _is_module(words[2]):
            yield f"no module {words[2]}"
        return
    script = words[1].replace("PATH/TO/REPOSITORY", str(ROOT))
    if script in READERS_SCRIPTS:
        return
    if not (ROOT / script).exists():
        yield f"no script {script}"
    elif script in RUNNERS:
        yield from _flag_problems(script, words[2:])


def _is_module(name: str) -> bool:
    """Whether a module of ours exists; modules of others are taken to."""
    parts = name.split(".")
    homes = [home for home in (ROOT, DROP_IN) if (home / parts[0]).is_dir()]
    paths = [home.joinpath(*parts) for home in homes]
    return not homes or any(
        path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() for path in paths
    )


def _flag_problems(script: str, arguments: list[str]) -> Iterator[str]:
    subcommand = ""
    if script == "run_benchmark.py":
        subcommand = arguments[0]
        if subcommand not in (*run_benchmark.COMMANDS, "--help"):
            yield f"no subcommand {subcommand}"
            return
    known = _flags(script, subcommand)
    yield from (f"no flag {word}" for word in arguments if word.startswith("--") and word not in known)
    recipes = (*config.names(), "resolved")
    for flag, value in itertools.pairwise(arguments):
        if flag == "--config" and not value.isupper() and value not in recipes:
            yield f"no recipe {value}"


@functools.cache
def _flags(script: str, subcommand: str) -> frozenset[str]:
    """Every flag that a runner's --help lists."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        RUNNERS[script]([*filter(None, [subcommand]), "--help"])
    return frozenset(re.findall(r"--[a-z0-9][a-z0-9-]*", told.getvalue()))
