"""Keys feed what reads them, and what they say of themselves is true."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Optional, Set, Type, get_type_hints

import pytest

import config
import data.squad
import model
import training
from config import keys_that_alter
from config.recipes import choices_of, is_optional
from config.schema import GROUPS, entries, kinds
from ipu.keys import REQUIRED, BatchKeys, KeyGroup
from ipu.options import DevicePlan
from planning import dry_run, programs
from tests.old_hosts import needs_verdict

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = (
    DevicePlan,
    data.PretrainingDataOptions,
    data.squad.AnswerKeys,
    data.squad.SquadDataOptions,
    training.LoopPlan,
    training.OptimizerPlan,
    training.Schedule,
)


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_field_of_a_section_is_fed(kind: Type[Any]) -> None:
    made = config.load("test_squad")
    section = made.section(kind)
    assert all(getattr(section, name) == getattr(made, name) for name in kind.__dataclass_fields__)


@pytest.mark.parametrize("kind", [*SECTIONS, model.ModelConfig])
def test_a_field_that_restates_a_key_has_its_type_and_default(kind: Type[Any]) -> None:
    """Packages that import torch restate the keys that they read; they may type a choice of words as str."""
    hints = get_type_hints(kind)
    resolved = {"norm", "convolution", "feed_forward"} if kind is model.ModelConfig else set()
    for entry in fields(kind):
        if entry.name not in entries() or entry.name in resolved:
            continue
        declared = kinds()[entry.name]
        text: Any = Optional[str] if is_optional(declared) else str
        assert hints[entry.name] in ((declared, text) if choices_of(declared) else (declared,)), entry.name
        assert entry.default in (MISSING, REQUIRED, entries()[entry.name].default), entry.name


def test_flags_need_no_torch() -> None:
    """Nor numpy: they take seconds to import, and --help and errors about flags don't need them."""
    code = (
        "import argparse, sys, config; config.add_flags(argparse.ArgumentParser()); "
        "config.read_recipe('test_bert'); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_groups_have_every_key_once_and_in_order() -> None:
    groups = [entry.name for parts in GROUPS.values() for part in parts for entry in fields(part)]
    assert groups == list(entries())


def test_a_group_without_a_required_key_is_refused() -> None:
    with pytest.raises(TypeError, match="BatchKeys needs gradient_accumulation"):
        BatchKeys(micro_batch_size=1)


def test_every_key_is_read_by_something() -> None:
    """By a section that has a field for it alone, or as an attribute outside of the configuration's files."""
    narrow = [kind for kind in SECTIONS if not issubclass(kind, KeyGroup)]
    read: Set[str] = {name for kind in narrow for name in kind.__dataclass_fields__}
    files = [ROOT / "config" / "schema.py", ROOT / "ipu" / "keys.py", ROOT / "ipu" / "options.py"]
    for room in ("benchmarks", "data", "model", "training", "planning"):
        files += (ROOT / room).rglob("*.py")
    for path in [*files, *ROOT.glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    model_keys = set(config.load("test_bert").model_config().__dataclass_fields__)
    chosen = {task.dataset_key for task in model.TASKS.values()}  # read by the dry run
    assert set(entries()) - read - model_keys - chosen == set()


def test_every_key_says_what_it_alters() -> None:
    effects = ("nothing", "evaluation", "machine", "options", "weights")
    parts = [keys_that_alter(effect) for effect in effects]
    assert set().union(*parts) == set(entries()) and sum(map(len, parts)) == len(entries())
    assert keys_that_alter("nothing", "options") == parts[0] | parts[3]


@needs_verdict
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_state": "off_chip"},
        {"replicated_tensor_sharding": True},
        {"matmul_proportion": (0.1, 0.7)},
    ],
)
def test_options_leave_the_graph_alone(changes: Any) -> None:
    """A program that was captured before they changed is costed as one that is captured after."""
    assert set(changes) <= keys_that_alter("options")
    before = config.load("test_bert", overrides={"replication_factor": 2, "device": "simulator"})
    after = config.load("test_bert", overrides={"replication_factor": 2, "device": "simulator", **changes})
    graph, settings = dry_run.program_of(before)
    changed = programs.with_options(settings, after)
    assert changed != settings
    assert dry_run.assess(after, "", (graph, changed)) == dry_run.assess(after, "", dry_run.program_of(after))


def test_all_options_are_tried() -> None:
    assert keys_that_alter("options") == {
        "optimizer_state",
        "replicated_tensor_sharding",
        "matmul_proportion",
    }


@needs_verdict
def test_a_key_of_the_graph_changes_it() -> None:
    assert "embedding_serialization_factor" in keys_that_alter("weights")
    plain = config.load("test_bert", overrides={"device": "simulator"})
    serialized = config.load(
        "test_bert", overrides={"device": "simulator", "embedding_serialization_factor": 5}
    )
    assert len(dry_run.program_of(plain)[0].ops) != len(dry_run.program_of(serialized)[0].ops)


@needs_verdict
@pytest.mark.parametrize("key, value", [("packed_data", True), ("sequence_length", 64), ("mask_tokens", 7)])
def test_a_program_of_other_shapes_is_another_program(key: str, value: object) -> None:
    plain = {"device": "simulator"}
    changed = config.load("test_bert", overrides={**plain, key: value})
    assert programs.key_of(changed) != programs.key_of(config.load("test_bert", overrides=plain))
