"""What an IPU host runs is Python 3.8 and torch 2.0.1: no newer syntax, no newer name.

The SDK's last PopTorch (3.4) is built for these. Everything but the simulator runs there; and the
simulator, whose Python may be newer, runs programs with that torch too.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for pattern in (
        "*.py",
        "config/**/*.py",
        "planning/**/*.py",
        "model/**/*.py",
        "data/**/*.py",
        "training/**/*.py",
        "benchmarks/**/*.py",
        "ipu/*.py",
    )
    for path in ROOT.glob(pattern)
)
# Named in torch's release notes after 2.0.1.
NEWER_IN_TORCH = {
    "torch.accelerator",  # 2.6
    "torch.compiler.is_compiling",  # 2.1
    "torch.export",  # 2.1
    "torch.get_autocast_dtype",  # 2.4
    "torch.get_default_device",  # 2.3
    "torch.nn.attention",  # 2.3
    "torch.nn.RMSNorm",  # 2.4
    "torch.nn.Buffer",  # 2.5
    "torch.serialization.add_safe_globals",  # 2.4
    "torch.uint16",  # 2.3
    "torch.uint32",  # 2.3
    "torch.uint64",  # 2.3
    "torch.utils._pytree.tree_leaves",  # 2.2
    "torch.utils.swap_tensors",  # 2.3
    "torch.distributed.device_mesh",  # 2.2
    "torch.amp.GradScaler",  # 2.3
}
# Methods and functions of the standard library, by the Python that brought them.
NEWER_IN_PYTHON = {
    "removeprefix": "3.9",
    "removesuffix": "3.9",
    "is_relative_to": "3.9",
    "with_stem": "3.9",
    "readlink": "3.9",
    "bit_count": "3.10",
    "hardlink_to": "3.10",
    "pairwise": "3.10",
    "batched": "3.12",
    "walk_up": "3.12",
}
NEWER_MODULES = {"graphlib": "3.9", "zoneinfo": "3.9", "tomllib": "3.11"}
NEWER_KEYWORDS = {"zip": {"strict"}, "dataclass": {"slots", "kw_only"}}
BUILTIN_GENERICS = {"dict", "list", "set", "tuple", "type", "frozenset"}


def dotted(node):
    """ "torch.nn.RMSNorm" of an attribute, "" of what isn't a plain name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def problems(text):
    """Each thing in a file that an IPU host doesn't have."""
    try:
        tree = ast.parse(text, feature_version=(3, 8))
    except SyntaxError as error:
        return [f"line {error.lineno}: {error.msg}"]
    found = []
    if not re.search(r"^from __future__ import annotations$", text, re.M) and "def " in text:
        found.append("from __future__ import annotations is missing")
    unevaluated = {
        id(inner)
        for node in ast.walk(tree)
        for name, child in ast.iter_fields(node)
        if name in ("annotation", "returns") and isinstance(child, ast.AST)
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in NEWER_IN_TORCH:
                found.append(f"line {line}: {name} is newer than torch 2.0.1")
            if node.attr in NEWER_IN_PYTHON:
                found.append(f"line {line}: .{node.attr} is Python {NEWER_IN_PYTHON[node.attr]}'s")
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in NEWER_IN_TORCH or alias.name in NEWER_IN_PYTHON:
                    found.append(f"line {line}: {node.module}.{alias.name} is too new")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in names:
                if name in NEWER_MODULES or name in NEWER_IN_TORCH:
                    found.append(f"line {line}: the module {name} is too new")
        if isinstance(node, ast.Call):
            newer = NEWER_KEYWORDS.get(dotted(node.func).split(".")[-1], set())
            found += [f"line {line}: {word.arg}= is too new" for word in node.keywords if word.arg in newer]
        generic = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)
        if generic and id(node) not in unevaluated and node.value.id in BUILTIN_GENERICS:
            found.append(f"line {line}: {node.value.id}[...] is evaluated, which Python 3.8 can't")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_ipu_host_has_all_that_this_needs(path):
    assert problems(path.read_text(encoding="utf-8")) == []


# Captures the graph for the cost model, whose predictions say that they need a newer torch.
PREDICTING = {ROOT / "ipu/simulator/dropin/poptorch/_trace/capture.py"}
PREDICTING_FUNCTIONS = {"plain_kernels"}  # of other modules


@pytest.mark.parametrize(
    "path",
    sorted({*ROOT.glob("ipu/simulator/**/*.py")} - PREDICTING),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_simulator_runs_with_poptorchs_torch(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") not in PREDICTING_FUNCTIONS]
    asked_for = {
        f"{dotted(node.args[0])}.{getattr(node.args[1], 'value', '')}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func) == "hasattr"
    }
    used = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not (used | imported) & NEWER_IN_TORCH - asked_for


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("match x:\n    case 1: pass", "Pattern matching"),
        ("with (open('a') as f, open('b') as g): pass", "arenthesized"),
        ("x: Dict = list[int]()", "list[...] is evaluated"),
        ("kind = Union[tuple[int], None]", "tuple[...] is evaluated"),
        ("'abc'.removeprefix('a')", "removeprefix"),
        ("from itertools import pairwise", "pairwise"),
        ("import tomllib", "tomllib"),
        ("zip(a, b, strict=True)", "strict="),
        ("torch.nn.RMSNorm(4)", "torch.nn.RMSNorm"),
        ("from torch.nn import RMSNorm", "torch.nn.RMSNorm"),
        ("import torch.export", "torch.export"),
        ("except* ValueError: pass", ""),
    ],
)
def test_what_is_too_new_is_found(line, words):
    found = problems("from __future__ import annotations\n\n" + line + "\n")
    assert len(found) >= 1 and words in found[0]


def test_what_is_old_enough_is_not():
    text = (
        "from __future__ import annotations\n\ndef f(x: list[int] | None) -> dict[str, int]:\n    return {}\n"
    )
    assert problems(text) == []
