"""Programs of published measurements: their sizes are the published ones; rows name programs that exist."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
import torch
from ipu_simulator.cost.constants import entries

from planning import foreign
from planning.evidence import rows_of
from planning.foreign_report import memory_rows, not_predicted
from planning.foreign_rows import foreign_row, options_of_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"


def same(*arguments):
    return arguments[0]


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        # torchvision's documentation.
        (lambda: foreign.ResNet50((), same), 25_557_032),
        (lambda: foreign.VisionTransformer((12,), same), 86_567_656),
        # Its tables of biases of relative positions, 2 x 32 x 6, are left out.
        (lambda: foreign.MT5(same, same), 300_176_768 - 2 * 32 * 6),
    ],
)
def test_models_have_the_published_number_of_parameters(build, parameters):
    with torch.device("meta"):
        model = build()
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_every_row_has_a_program_or_a_reason():
    known = {row["id"] for row in rows_of()}
    assert {row.rstrip("+") for row in options_of_rows()} <= known
    said = "\n".join(not_predicted([row for row in rows_of() if row["id"] not in options_of_rows()]))
    assert re.findall(r"- (\w+) ", said) == ["M10"] and "no sizes" in said


def test_products_of_matrices_fit_as_published():
    """The largest that ran fits, and twice as much doesn't."""
    found = memory_rows([row for row in rows_of() if row["id"] == "M15"])
    assert [(each.id, each.fits, each.predicted) for each in found] == [
        ("M15", True, True),
        ("M15+", False, False),
    ]
    assert foreign_row("M10") is None


def test_a_product_of_operands_in_another_layout_needs_copies_of_them():
    """Tutorial 4's ran out of memory; with operands as its plan wants them, it would fit."""
    (found,) = memory_rows([row for row in rows_of() if row["id"] == "M5"])
    assert not found.fits and not found.predicted
    assert found.bytes_error is not None and abs(found.bytes_error) < 0.1
    row = foreign_row("M5")
    copies = [op for op in row.graph.ops if op.name == "clone"]
    assert len(copies) == 3


def test_the_errors_printed_beside_times_are_those_of_the_page():
    text = PAGE.read_text(encoding="utf-8")
    others = dict(entries()["expected_error_of_other_kinds"])
    assert set(others) == {"about", "convolutional networks", "other encoders"}
    del others["about"]
    for each in others.values():
        errors = []
        for row in each["rows"].split():
            found = re.search(rf"^\| {row} \|.*? \| ([-+][\d.]+)% \|", text, re.MULTILINE)
            assert found, row
            errors.append(abs(float(found[1])) / 100)
        assert each["value"] == pytest.approx(statistics.mean(errors), abs=0.001)
