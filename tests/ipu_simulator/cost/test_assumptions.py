"""The numbers that a verdict lists: every one that can change it, and none that can't."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import fields, replace

import pytest
from ipu_simulator.cost import assess as assembling
from ipu_simulator.cost import convolution
from ipu_simulator.cost import vertices as operation_numbers
from ipu_simulator.cost.constants import (
    Constants,
    MemoryConstants,
    constants,
    memory_assumptions,
    memory_constants,
    time_assumptions,
)
from ipu_simulator.environment import Target, facts, target
from ipu_simulator.report import json_text, text

from tests.ipu_simulator.cost.graphs import Builder, chain, settings
from tests.ipu_simulator.cost.programs import program

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("programs")]

BOW = target("bow-pod16")
CACHES = (
    operation_numbers.content,
    operation_numbers.operation_constants,
    operation_numbers.matrix_unit_constants,
    operation_numbers.vertices,
    convolution.plan_convolution,
)


@functools.cache
def programs():
    """Training on several IPUs with state off the chip; on one with a convolution; inference in float32."""
    small = {"sequence_length": 16, "mask_tokens": 2, "micro_batch_size": 1}
    pipeline = settings(2, replicas=2, matmul_proportions=(0.01, 0.01))
    sharded = replace(pipeline.optimizer, location="off_chip", sharded=True)
    wide = chain((0, 1, 0), [[512], [512, 512], [512]], batch=512)
    graph, made = program("groupbert-1x64", layers_per_ipu=(1,), matmul_proportion=(0.2,), **small)
    alone = replace(made, replicas=1, framework="PopART", execution="sharded", recompute=False)
    on_chip = replace(alone, optimizer=replace(made.optimizer, location="on_chip", sharded=False))
    builder = Builder((0,))
    x, w = builder.tensor([65536, 96], "input", "x", "float32"), builder.tensor([96, 96], "parameter", "w")
    y, z = (builder.tensor([65536, 96], dtype="float32") for _ in range(2))
    builder.op("mm", [x, w], [y])
    builder.op("erf", [y], [z])
    infers = (builder.graph([x], [z]), settings(1, optimizer=None, execution="sharded", framework="TF1"))
    return {
        "pipeline": (wide, replace(pipeline, optimizer=sharded)),
        "groupbert": (graph, on_chip),
        "infers": infers,
    }


def verdict(name, machine=BOW):
    return assembling.assess(*programs()[name], machine, name=name)


def shown(made):
    """A verdict and its details without the list of numbers."""
    return json_text(replace(made, details=replace(made.details, assumptions=()))), replace(
        made.details, assumptions=()
    )


def changes_of(value):
    """Other values of a number: a capacity shows when it is cut, a threshold when it is raised."""
    return value * 2, value / 2, value * 1e-7, value * 1e7, value * 1.25, value / 1.25


def all_numbers():
    """The kind and name of every number."""
    yield from (("fact", each.name) for each in facts("bow-pod16"))
    yield from (("time", each.name) for each in time_assumptions())
    yield from (("memory", each.name) for each in memory_assumptions())
    yield from (("operation", each.name) for each in operation_numbers.operation_assumptions())


def with_numbers(name, change, monkeypatch, tmp_path):
    """Replaces one of the operations' numbers."""
    file = json.loads(operation_numbers.FILE.read_text(encoding="utf-8"))
    section = next((section for section in ("constants", "matrix_unit") if name in file[section]), None)
    if section is not None:
        entry, key = file[section][name], "value"
    else:
        vertex, _, what = name.rpartition(", ")
        keys = {"float16": "half_cycles", "float32": "float_cycles", "compute sets": "compute_sets"}
        entry, key = file["vertices"][vertex], keys[what]
    entry[key] = change(entry[key])
    path = tmp_path / "vertices.json"
    path.write_text(json.dumps(file), encoding="utf-8")
    monkeypatch.setattr(operation_numbers, "FILE", path)


def changed(kind, name, program_name, at, monkeypatch, tmp_path):
    """The verdict with the number's alternative value `at`."""
    machine = BOW
    if kind == "fact":
        value = changes_of(getattr(BOW, name))[at]
        whole = {field.name for field in fields(Target) if field.type == "int"}
        machine = replace(BOW, **{name: max(1, int(value)) if name in whole else value})
    elif kind == "time":
        values = replace(constants(), **{name: changes_of(getattr(constants(), name))[at]})
        monkeypatch.setattr(assembling, "constants", lambda: values)
    elif kind == "memory":
        memory = replace(memory_constants(), **{name: changes_of(getattr(memory_constants(), name))[at]})
        monkeypatch.setattr(assembling, "memory_constants", lambda: memory)
    else:

        def change(value):
            other = changes_of(value)[at]
            return max(1, int(other)) if isinstance(value, int) and "compute" in name else other

        with_numbers(name, change, monkeypatch, tmp_path)
        reread()
    return verdict(program_name, machine)


def reread():
    """Clears the caches of the numbers, and of plans whose keys don't include them."""
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture(autouse=True)
def shipped_numbers_afterwards():
    yield
    reread()


@pytest.mark.parametrize("program_name", ["pipeline", "groupbert", "infers"])
def test_what_is_counted_acts_and_what_is_not_does_not(program_name, monkeypatch, tmp_path):
    base = verdict(program_name)
    shown_before = shown(base)
    counted = {assumption.name for assumption in base.details.assumptions}
    wrong = []
    for kind, name in all_numbers():
        # What isn't counted may still decide against a plan that wasn't chosen: no large changes there,
        # and small ones of what decides most, the other branches of a formula.
        other_branches = (4, 5) if "_vertex_" in name else (0, 1)
        at = range(4) if name in counted else other_branches
        moved = False
        for which in at:
            with monkeypatch.context() as patch:
                other = changed(kind, name, program_name, which, patch, tmp_path)
            moved = moved or shown(other) != shown_before
            if moved:
                break
        if moved != (name in counted):
            wrong.append((kind, name, "moves" if moved else "moves nothing"))
    assert not wrong, "\n".join(map(str, wrong))


def test_names_are_unique_and_every_number_is_listed_by_some_verdict():
    names = [name for _, name in all_numbers()]
    assert not [name for name, count in Counter(names).items() if count > 1]
    assert {field.name for field in fields(Constants)} <= set(names)
    assert {field.name for field in fields(MemoryConstants)} <= set(names)
    assert {field.name for field in fields(operation_numbers.OperationConstants)} <= set(names)
    assert {field.name for field in fields(operation_numbers.MatrixUnitConstants)} <= set(names)


def test_a_verdict_says_how_many_there_are():
    made = verdict("pipeline")
    numbers = made.details.assumptions
    origins = Counter(assumption.origin for assumption in numbers)
    named = ", ".join(f"{count} {origin}" for origin, count in sorted(origins.items()))
    assert f"It rests on {len(numbers)} numbers ({named})" in text(made)
    assert {"poptorch_factor", "streaming_memory_bytes", "GELU, float16"} <= {each.name for each in numbers}


def test_no_constant_of_another_framework_or_of_links_that_nothing_crosses():
    names = {assumption.name for assumption in verdict("groupbert").details.assumptions}
    assert not names & {"poptorch_factor", "tf1_factor", "link_efficiency", "collective_latency_s"}
    assert "transform_cycles_per_byte" in names
