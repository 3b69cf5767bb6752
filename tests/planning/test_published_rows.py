"""Files of measurements: what is read, and how mistakes are named."""

from __future__ import annotations

import pytest

from planning.published_rows import COLUMNS, RowsError, read_rows
from tests.planning.rows import HEADER, ROWS, rows_file


def test_a_row_is_read_whole(tmp_path):
    (first, second), faults = read_rows(rows_file(tmp_path))
    assert not faults
    assert (first.id, first.line, first.target, first.framework) == ("T1", 2, "pod4", "PopTorch")
    assert first.layers_per_ipu == (0, 2, 2) and first.matmul_proportion == (0.2, 0.2, 0.2)
    assert (first.packed, first.replicated_tensor_sharding, first.optimizer_state) == (
        False,
        False,
        "off_chip",
    )
    assert second.layers_per_ipu == (1.5, 2.5) and second.matmul_proportion == (0.3, 0.4)
    assert second.packed and second.embedding_serialization_factor == 2 and second.step_s == 0.25


def test_further_columns_and_other_orders_do_not_matter(tmp_path):
    path = rows_file(tmp_path)
    plain = read_rows(path)
    lines = [line.split(",")[::-1] for line in path.read_text().splitlines()]
    shuffled = [",".join([*line, "note" if not number else "!"]) for number, line in enumerate(lines)]
    path.write_text("\n".join(shuffled) + "\n")
    assert read_rows(path) == plain
    needless = {"sdk", "source"}
    assert set(HEADER.split(",")) - needless == set(COLUMNS)


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("target", "pod17", "'pod17' is unknown; did you mean 'pod16'?"),
        ("target", "", "is empty"),
        ("framework", "pytorch", "'pytorch' is unknown; did you mean 'PopTorch'?"),
        ("sequence_length", "128.5", "'128.5' is not a whole number of at least 1"),
        ("mask_tokens", "-1", "not a whole number"),
        ("micro_batch_size", "0", "not a whole number"),
        ("gradient_accumulation", "many", "not a whole number"),
        ("replication_factor", "", "is empty"),
        ("layers_per_ipu", "0 2.3 1.7", "'2.3' is not a number of layers or half layers"),
        ("layers_per_ipu", "0 x", "'x' is not a number"),
        ("layers_per_ipu", "0 2.5 2", "places 4.5 layers: a half layer lacks its other half"),
        ("layers_per_ipu", "0 0", "places no layer"),
        ("optimizer_state", "chip", "'chip' is unknown; did you mean"),
        ("replicated_tensor_sharding", "yes", "'yes' is neither 0 nor 1"),
        ("packed", "2", "'2' is neither 0 nor 1"),
        ("matmul_proportion", "0.2 0.2", "2 values for 3 IPUs of layers_per_ipu"),
        ("matmul_proportion", "1.2", "'1.2' must be above 0 and at most 1"),
        ("embedding_serialization_factor", "none", "not a whole number"),
        ("step_s", "0", "0 is not above 0"),
        ("step_s", "nan", "'nan' is not a number"),
        ("step_s", "1,5", "is not a number"),
        ("step_s", "1" * 400, "'1111111111111111111111111111111111111111...' is not a number"),
        ("sequence_length", "1" * 5000, "not a whole number"),
    ],
)
def test_a_bad_value_is_named_by_row_and_column(tmp_path, column, value, problem):
    if column == "step_s" and "," in value:
        value = '"1,5"'
    path = rows_file(tmp_path, **{column: value})
    rows, (fault,) = read_rows(path)
    assert [row.id for row in rows] == ["T2"]
    assert str(fault).startswith(f"row 'T1' (line 2), column {column}: ") and problem in str(fault)


def test_files_that_are_none(tmp_path):
    with pytest.raises(RowsError, match="can't read"):
        read_rows(tmp_path / "absent.csv")
    path = tmp_path / "rows.csv"
    path.write_text("")
    with pytest.raises(RowsError, match="is empty"):
        read_rows(path)
    path.write_text(HEADER + ",id\n")
    with pytest.raises(RowsError, match="more than one column id"):
        read_rows(path)
    path.write_text(HEADER + "\n")
    with pytest.raises(RowsError, match="has no rows"):
        read_rows(path)
    path.write_text("id,target\nA,pod4\n")
    with pytest.raises(RowsError, match="lacks the columns framework, model"):
        read_rows(path)
    path.write_text(HEADER + "\n" + "x" * 200_000 + "\n")
    with pytest.raises(RowsError, match="is not a CSV file: field larger"):
        read_rows(path)


def test_a_row_twice_and_a_row_cut_short(tmp_path):
    path = rows_file(tmp_path, {"A": ROWS["T1"], "B": ROWS["T1"]}, id="B")
    path.write_text(path.read_text() + "T1,pod4\n")
    rows, faults = read_rows(path)
    assert [row.id for row in rows] == ["B"]
    assert str(faults[0]).startswith("row 'B' (line 3), column id: the same id as in line 2")
    assert str(faults[1]).startswith("row 'T1' (line 4), column ") and "is empty" in str(faults[1])


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_what_spreadsheets_and_people_add(tmp_path, ending):
    path = rows_file(tmp_path)
    plain = [(row.id, row.step_s) for row in read_rows(path)[0]]
    header, first, second = path.read_text().splitlines()
    lines = ["# made up", header, "", first + ",more,cells", "," * 17, "# " + second, second, ""]
    path.write_bytes(b"\xef\xbb\xbf" + ending.join(lines).encode())
    rows, faults = read_rows(path)
    assert not faults and [(row.id, row.step_s) for row in rows] == plain
