"""`python -m ipu.simulator validate` and `fit`, from files to exit status."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ipu_simulator.cost import constants as shipped
from ipu_simulator.cost.constants import constants

from planning import validate as command
from planning.fit_constants import by_utilisation_s, fit, measured, utilisation, validate, with_values
from planning.published_rows import read_rows
from tests.planning.rows import ROWS, rows_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("validate"),
]  # one process, for a fixture of ten seconds

PUBLISHED = Path(command.__file__).with_name("published.csv")


def programs(path):
    """The programs of a file without faults."""
    rows, unreadable = read_rows(path)
    found, impossible = measured(rows)
    assert not unreadable and not impossible
    return found


@pytest.fixture(scope="module")
def published():
    return programs(PUBLISHED)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return programs(rows_file(tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What is printed of a file that has the second row only."""
    path = rows_file(tmp_path_factory.mktemp("alone"), {"T2": ROWS["T2"]})
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command.main(["validate", str(path)]) == 0
    return printed.getvalue()


def test_json_and_text(tmp_path, capsys):
    path, out = rows_file(tmp_path), tmp_path / "errors.json"
    assert command.main(["validate", str(path), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found) == [
        "rows",
        "mean_error",
        "max_error",
        "loo_mean_error",
        "baselines",
        "constants",
    ]
    assert [row["id"] for row in found["rows"]] == ["T1", "T2"]
    errors = []
    for row, published in zip(found["rows"], (0.5, 0.25)):
        assert row["published_s"] == published
        assert row["error"] == pytest.approx(row["predicted_s"] / published - 1)
        errors.append(abs(row["error"]))
    assert found["mean_error"] == pytest.approx(sum(errors) / 2)
    assert found["max_error"] == pytest.approx(max(errors))
    assert set(found["baselines"]) == {"constant_utilisation", "flops_over_peak"}
    assert set(found["constants"]) == set(shipped.entries()["fitted"])
    printed = capsys.readouterr().out
    for word in ("T1", "T2", "leave-one-out", "constant utilisation", "matmul_factor"):
        assert word in printed


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"model": "bert-huge"}, "model"),
        ({"model": "roberta-base"}, "model"),
        ({"model": "bert-4x250"}, "model"),
        ({"layers_per_ipu": "0 2 3"}, "layers_per_ipu"),
        ({"replication_factor": "2"}, "replication_factor"),
        ({"gradient_accumulation": "4"}, "gradient_accumulation"),
        ({"mask_tokens": "400"}, "mask_tokens"),
        ({"sequence_length": "100000"}, "sequence_length"),
        ({"micro_batch_size": "1" + 30 * "0"}, "micro_batch_size"),
        ({"embedding_serialization_factor": "30523"}, "embedding_serialization_factor"),
        ({"framework": "PyTorch"}, "framework"),
    ],
)
def test_a_row_that_cannot_be_predicted_is_named_and_left_out(tmp_path, capsys, alone, changes, column):
    """The other row's figures are those of a file without the faulty one."""
    out = tmp_path / "errors.json"
    assert command.main(["validate", str(rows_file(tmp_path, **changes)), "--json", str(out)]) == 2
    captured = capsys.readouterr()
    problem = f"row 'T1' (line 2), column {column}: "
    assert captured.err.startswith(f"ipu.simulator validate: {problem}")
    (said,) = [line for line in captured.out.splitlines() if line.startswith(f"- {problem}")]
    without = captured.out.replace(f"\n\n1 row is not predicted, and excluded from all figures:\n{said}", "")
    assert without == alone
    found = json.loads(out.read_text())
    assert [row["id"] for row in found["rows"]] == ["T2"]
    (left_out,) = found["not_predicted"]
    assert (left_out["id"], left_out["line"], left_out["column"]) == ("T1", 2, column)


def test_without_a_row_that_can_be_predicted_nothing_is_printed(tmp_path, capsys):
    rows = {name: values.replace("bert-mini", "gpt2") for name, values in ROWS.items()}
    assert command.main(["validate", str(rows_file(tmp_path, rows))]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 2


def test_a_fit_wants_every_row(tmp_path, capsys):
    assert command.main(["fit", str(rows_file(tmp_path, model="gpt2"))]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "row 'T1' (line 2), column model: " in captured.err


def test_sizes_without_a_name(tmp_path):
    """As `run_benchmark.py acceptance` writes those of models of one's own."""
    (named, _) = programs(rows_file(tmp_path))
    (sized, _) = programs(rows_file(tmp_path, model="bert-4x256"))
    assert sized.predicted_s(constants()) == named.predicted_s(constants())
    (underscores, _) = programs(rows_file(tmp_path, model="bert_mini"))
    assert underscores.predicted_s(constants()) == named.predicted_s(constants())


def test_validate_never_changes_the_constants_and_fit_does(tmp_path, monkeypatch, small):
    file = tmp_path / "constants.json"
    text = shipped.FILE.read_text()
    file.write_text(text)
    monkeypatch.setattr(shipped, "FILE", file)
    path = rows_file(tmp_path)
    assert command.main(["validate", str(path)]) == 0
    assert file.read_text() == text
    assert command.main(["fit", str(path)]) == 0
    shipped.entries.cache_clear()
    try:
        entries = shipped.entries()
        assert entries["fitted"]["matmul_factor"]["rows"] == "T1 T2"
        made = fit(small)
        for name, value in made.values.items():
            assert entries["fitted"][name]["value"] == pytest.approx(value, rel=1e-4)
        for row in small:
            error = row.predicted_s(made.constants) / row.row.step_s - 1
            assert entries["residuals"][row.row.id] == pytest.approx(error, abs=1e-3)
        assert entries["assumed"] == json.loads(text)["assumed"]
    finally:
        shipped.entries.cache_clear()


def test_what_a_row_does_not_say_does_not_matter(small, tmp_path):
    """Packed rows are costed as one sequence; further columns say nothing."""
    again = programs(rows_file(tmp_path, packed="1", source="another", sdk="9"))
    assert again[0].predicted_s(constants()) == small[0].predicted_s(constants())


def test_a_single_replica_shares_with_itself(small, tmp_path):
    """As some published configurations say; the application's own are refused."""
    again = programs(rows_file(tmp_path, replicated_tensor_sharding="1"))
    assert again[0].predicted_s(constants()) == small[0].predicted_s(constants())


def test_a_fit_finds_the_constants_that_made_the_rows(small):
    """Step times made by the model itself, with few rows: the priors pull, but nothing is better."""
    fitted = shipped.entries()["fitted"]
    priors = {name: float(entry["prior"]) for name, entry in fitted.items()}
    true = with_values(priors)
    made = [replace(row, row=replace(row.row, step_s=row.predicted_s(true))) for row in small]
    found = fit(made)
    for name, value in priors.items():
        assert found.values[name] == pytest.approx(value, rel=1e-6)
    with_error = [replace(row, row=replace(row.row, step_s=1.1 * row.row.step_s)) for row in made]
    slower = fit(with_error)
    assert all(row.predicted_s(slower.constants) > 1.05 * row.predicted_s(found.constants) for row in made)


def test_a_fit_to_rows_far_from_the_model_stays_finite(small):
    """One row of a thousandth of what the model says: whole Gauss-Newton steps would run away."""
    far = [
        replace(row, row=replace(row.row, step_s=row.predicted_s(constants()) * factor))
        for row, factor in zip(small, (1.0, 1e-3))
    ]
    made = fit(far).constants
    predicted = [row.predicted_s(made) / row.row.step_s for row in far]
    before = [row.predicted_s(constants()) / row.row.step_s for row in far]
    assert np.square(np.log(predicted)).sum() < np.square(np.log(before)).sum()


def test_baselines_by_hand(small):
    for row in small:
        ipus = len(row.row.layers_per_ipu) * row.row.replication_factor
        assert row.at_peak_s == pytest.approx(row.flops / (row.target.peak_flops_per_s * ipus))
        assert row.predicted_s(constants()) > row.at_peak_s
    level, factor = utilisation(small)
    assert by_utilisation_s(small[1], level, factor) == pytest.approx(small[1].row.step_s)
    assert by_utilisation_s(small[0], level, factor) == pytest.approx(small[0].row.step_s)


def test_published_rows_are_reached(published):
    found = validate(published)
    assert len(found.rows) == 11
    assert found.errors.mean <= 0.02
    assert found.leave_one_out.mean <= 0.025 and found.leave_one_out.max <= 0.06
    for name, errors in found.leave_a_group_out.items():
        assert errors.mean <= 0.045, name
    assert found.errors.mean < found.baselines["constant_utilisation"].mean
    assert found.baselines["constant_utilisation"].mean < found.baselines["flops_over_peak"].mean


def test_shipped_constants_are_the_fit_to_the_published_rows(published):
    assert shipped.entries()["fitted"]["matmul_factor"]["rows"].split() == [row.row.id for row in published]
    made = fit(published)
    for name, value in made.values.items():
        # Constants trade off, so that their values move more than what they predict.
        assert shipped.entries()["fitted"][name]["value"] == pytest.approx(value, rel=0.5 * made.sd[name])
    for row in published:
        assert row.predicted_s(constants()) == pytest.approx(row.predicted_s(made.constants), rel=0.003)
