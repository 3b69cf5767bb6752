"""Kinds of programs: the error beside a time belongs to the kind at hand, or none was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ipu_simulator.cost.assess import assess
from ipu_simulator.cost.constants import entries
from ipu_simulator.cost.kinds import kind_of
from ipu_simulator.environment import target
from ipu_simulator.report import text

from tests.ipu_simulator.cost.graphs import chain
from tests.ipu_simulator.cost.programs import program

# In one process, which captures each program once.
pytestmark = pytest.mark.xdist_group("programs")

BOW = target("bow-pod16")


def judged(graph, made):
    verdict = assess(graph, made, BOW, name="p")
    return verdict.details.kind, verdict.details.expected_time_error, text(verdict)


def test_berts_pretraining_has_the_error_of_rows_left_out():
    graph, made = program("bert-medium")
    kind, error, said = judged(graph, made)
    assert kind == "pretraining of BERT" and error == entries()["expected_error"]["value"]
    assert "published rows left out of the fit" in said
    # No row of this framework was measured.
    assert judged(graph, replace(made, framework="TF2"))[1] is None


def test_programs_of_a_kind_and_framework_without_rows_have_none():
    graph, made = program("groupbert-medium")
    kind, error, said = judged(graph, replace(made, framework="TF1"))
    assert (kind, error) == ("other encoders", None)
    assert "no published time of other encoders was at hand" in said


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lstm", "recurrent networks"),
        ("convolution", "convolutional networks"),
        ("mm", "programs of this kind"),
    ],
)
def test_kinds_by_operations(name, kind):
    graph = chain((0, 1, 0), [[16], [16, 16], [16]])
    ops = tuple(replace(op, name="zeta") if op.phase == "forward" else op for op in graph.ops)
    ops = tuple(replace(op, name=name) if op.phase == "forward" and not op.index else op for op in ops)
    assert kind_of(replace(graph, ops=ops)) == kind
    assert kind_of(replace(graph, ops=ops, gradients={})) == "inference"


def test_other_kinds_have_the_error_of_rows_that_nothing_was_fitted_to():
    graph, made = program("groupbert-medium")
    known = entries()["expected_error_of_other_kinds"]["other encoders"]
    _, error, said = judged(graph, replace(made, framework="PopTorch"))
    assert error == known["value"] and f"{known['value']:.1%}"[:-2] in said


def test_the_softmax_of_a_loss_is_no_attention():
    graph = chain((0, 1, 0), [[16], [16, 16], [16]])
    names = {0: "convolution", 2: "_log_softmax"}
    ops = tuple(replace(op, name=names.get(op.index, op.name)) for op in graph.ops)
    assert kind_of(replace(graph, ops=ops)) == "convolutional networks"
    names[2] = "_softmax"
    ops = tuple(replace(op, name=names.get(op.index, op.name)) for op in graph.ops)
    assert kind_of(replace(graph, ops=ops)) == "other encoders"
