"""GLUE's own files, one's own, Hugging Face's columns, and each way to be none of them."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest

from data import DataError
from data.glue import GLUE_TASKS, Columns, leaderboard_files, read_examples

# A header and a row of each published TSV file, with an answer.
TSV: Dict[str, List[str]] = {
    "sst2": ["sentence\tlabel", 'a "smile \t1'],
    "mrpc": ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t70\t71\tHe said "no\tHe said no'],
    "stsb": [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tm\tf\t2012\t1\tn\tn\tA plane.\tAn air plane.\t4.750",
    ],
    "qqp": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "7\t1\t2\tHow?\tWhy?\t0"],
    "mnli": [
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t1n\tg\tb\tb\tp\tp\tOne.\tTwo.\tneutral\tcontradiction",
    ],
    "qnli": ["index\tquestion\tsentence\tlabel", "0\tWhen?\tThen.\tnot_entailment"],
    "rte": ["index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\tentailment"],
    "wnli": ["index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\t1"],
}
FOUND = {
    "sst2": (('a "smile ',), "positive"),
    "mrpc": (('He said "no', "He said no"), "equivalent"),
    "stsb": (("A plane.", "An air plane."), 4.75),
    "qqp": (("How?", "Why?"), "not_duplicate"),
    "mnli": (("One.", "Two."), "contradiction"),
    "qnli": (("When?", "Then."), "not_entailment"),
    "rte": (("One.", "Two."), "entailment"),
    "wnli": (("One.", "Two."), "entailment"),
}


def wrote(file: Path, *lines: str) -> str:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", TSV)
def test_published_files(name: str, tmp_path: Path) -> None:
    found = read_examples(wrote(tmp_path / "train.tsv", *TSV[name]), "train", GLUE_TASKS[name])
    (example,) = found.examples
    assert (example.texts, example.label) == FOUND[name]
    assert found.classes == GLUE_TASKS[name].classes
    header, row = (line.split("\t") for line in TSV[name])
    answer = header.index(GLUE_TASKS[name].answer_column)
    unlabelled = [
        "\t".join(cell for place, cell in enumerate(line) if place != answer) for line in (header, row)
    ]
    (tested,) = read_examples(wrote(tmp_path / "test.tsv", *unlabelled), "test", GLUE_TASKS[name]).examples
    assert tested.texts == example.texts and tested.label is None


def test_cola_has_a_header_in_its_test_set_only(tmp_path: Path) -> None:
    lines = ["gj04\t1\t\tOur friends won't buy.", 'gj04\t0\t*\t"They drank.']
    found = read_examples(wrote(tmp_path / "train.tsv", *lines), "train", GLUE_TASKS["cola"]).examples
    assert [one.label for one in found] == ["acceptable", "unacceptable"]
    assert found[1].texts == ('"They drank.',)
    test = wrote(tmp_path / "test.tsv", "index\tsentence", "0\tBill whistled.")
    assert read_examples(test, "test", GLUE_TASKS["cola"]).examples[0].texts == ("Bill whistled.",)


def test_a_folder_has_both_parts_of_mnli(tmp_path: Path) -> None:
    header, row = TSV["mnli"]
    for part in ("matched", "mismatched"):
        wrote(tmp_path / f"dev_{part}.tsv", header, row.replace("One", part))
        wrote(tmp_path / f"test_{part}.tsv", header, row, row)
    wrote(tmp_path / "train.tsv", header, row, row.replace("contradiction", "-"))
    mnli = GLUE_TASKS["mnli"]
    assert len(read_examples(str(tmp_path), "train", mnli).examples) == 1  # annotators disagreed on the other
    held_out = read_examples(str(tmp_path), "validation", mnli).examples
    assert [(one.part, one.texts[0]) for one in held_out] == [
        ("matched", "matched."),
        ("mismatched", "mismatched."),
    ]
    (file,) = {
        one.part for one in read_examples(str(tmp_path / "dev_mismatched.tsv"), "validation", mnli).examples
    }
    assert file == "mismatched"
    test = read_examples(str(tmp_path), "test", mnli)
    scores = np.array([[0, 2, 1], [3, 1, 2], [0, 0, 1], [9, 0, 0]], dtype=np.float32)
    assert leaderboard_files(test, scores, mnli, mnli.classes) == {
        "MNLI-m.tsv": "index\tprediction\n0\tneutral\n1\tentailment\n",
        "MNLI-mm.tsv": "index\tprediction\n0\tcontradiction\n1\tentailment\n",
    }
    with pytest.raises(DataError, match=r"no file for test, such as test\.tsv"):
        read_examples(str(tmp_path), "test", GLUE_TASKS["rte"])


def test_predictions_are_numbers_names_or_scores(tmp_path: Path) -> None:
    lines = ["index\tsentence1\tsentence2", "5\tOne.\tTwo.", "9\tTwo.\tOne."]
    file = wrote(tmp_path / "test.tsv", *lines)
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])
    # The model's classes may be in another order and case than the task's.
    for name, classes, rows in (
        ("wnli", ("not_entailment", "entailment"), "0\t1\n1\t0\n"),
        ("wnli", ("Entailment", "Not_entailment"), "0\t0\n1\t1\n"),
        ("rte", ("entailment", "not_entailment"), "0\tnot_entailment\n1\tentailment\n"),
    ):
        task = GLUE_TASKS[name]
        (content,) = leaderboard_files(read_examples(file, "test", task), scores, task, classes).values()
        assert content == "index\tprediction\n" + rows
    stsb = GLUE_TASKS["stsb"]
    numbers = np.array([[5.25], [2.34567]])
    files = leaderboard_files(read_examples(file, "test", stsb), numbers, stsb, ())
    assert files == {"STS-B.tsv": "index\tprediction\n0\t5.000\n1\t2.346\n"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_ones_own_classes(suffix: str, tmp_path: Path) -> None:
    rows = [("0", "good, really", "up"), ("1", "bad", "down"), ("2", "so so", "flat")]
    if suffix == "jsonl":
        lines = [json.dumps({"id": id_, "text": text, "label": label}) for id_, text, label in rows]
    else:
        mark = {"csv": ",", "tsv": "\t"}[suffix]
        lines = [mark.join(("id", "text", "label"))]
        lines += [
            mark.join((id_, f'"{text}"' if suffix == "csv" else text, label)) for id_, text, label in rows
        ]
    found = read_examples(wrote(tmp_path / f"own.{suffix}", *lines), "train", GLUE_TASKS["csv"])
    assert found.classes == ("down", "flat", "up")
    assert [(one.id, one.texts, one.label) for one in found.examples] == [
        (id_, (text,), label) for id_, text, label in rows
    ]
    other = wrote(tmp_path / "other.csv", "text,label", "fine,sideways")
    with pytest.raises(DataError, match="'sideways', not one of 'down', 'flat', 'up', the training set's"):
        read_examples(other, "validation", GLUE_TASKS["csv"], classes=found.classes)


def test_columns_by_name_and_by_guess(tmp_path: Path) -> None:
    csv = GLUE_TASKS["csv"]
    file = wrote(tmp_path / "own.csv", "claim,evidence,other,verdict", "a,b,c,1", "d,e,f,0")
    with pytest.raises(
        DataError, match=r"name them with --text-columns.*'label' \(another name: --label-column"
    ):
        read_examples(file, "train", csv)
    unnamed = wrote(tmp_path / "unnamed.csv", "headline,verdict", "a,1")
    with pytest.raises(DataError, match=r"needs one or two texts .*, and 'label'"):
        read_examples(unnamed, "train", csv)
    for name, header in (
        ("semi.csv", "text;label"),
        ("tabs.csv", "text\tlabel"),
        ("commas.tsv", "text,label"),
    ):
        with pytest.raises(DataError, match=r"seem to be separated by '(;|\\t|,)': a \.csv needs commas"):
            read_examples(wrote(tmp_path / name, header, header), "train", csv)
    named = Columns(("claim", "evidence"), "verdict")
    assert read_examples(file, "train", csv, columns=named).examples[1].texts == ("d", "e")
    for header, texts in (
        ("premise,hypothesis,label,extra", ("a", "b")),
        ("question,context,label,extra", ("a", "b")),
        ("left,right,label", ("a", "b")),
        ("sentence,extra,label", ("a",)),
        ("body,label", ("a",)),
    ):
        cells = {"label": "x", "extra": "z"}
        values = iter("ab")
        rows = [",".join(cells.get(name) or next(values) for name in header.split(","))]
        rows.append(rows[0].replace("x", "y"))
        file = wrote(tmp_path / "guess.csv", header, *rows)
        assert read_examples(file, "train", csv).examples[0].texts == texts


def test_ones_own_numbers(tmp_path: Path) -> None:
    file = wrote(tmp_path / "own.csv", "text,label", "a,1.5", "b,-1", "c,2e3")
    found = read_examples(file, "train", GLUE_TASKS["csv_regression"])
    assert [one.label for one in found.examples] == [1.5, -1.0, 2000.0] and found.classes == ()
    for bad in ("x", "nan", "inf", "1e12"):
        file = wrote(tmp_path / "bad.csv", "text,label", f"a,{bad}")
        with pytest.raises(DataError, match=rf"line 2: 'label' is '{bad}', not a number"):
            read_examples(file, "train", GLUE_TASKS["csv_regression"])


def test_lines_without_label_or_columns_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = wrote(tmp_path / "train.tsv", *TSV["qqp"], "8\t1\t2\tHow?", "9\t1\t2\tHow?\tWhy?\t1")
    assert len(read_examples(file, "train", GLUE_TASKS["qqp"]).examples) == 2
    assert "1 lines have too few columns and are left out, line 3 first" in capsys.readouterr().err
    file = wrote(tmp_path / "own.csv", "text,label", "a,1", "b,", "c,0")
    assert len(read_examples(file, "train", GLUE_TASKS["csv"]).examples) == 2
    assert "1 examples without a label are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("own.csv", ["text,label", "a"], "line 2 has 1 columns, but the header has 2"),
        ("own.csv", ["text,label", "a,1", "b,1"], r"has 1 class\(es\)"),
        ("own.csv", ["text,label"], "has no examples for train"),
        ("own.csv", ["text,label", '"a,1'], "line 2: unexpected end of data"),
        ("own.jsonl", ['{"text": "a", "label": 1}', "{"], "line 2 is not JSON"),
        ("own.jsonl", ["[1]"], "is a JSON list, not an object"),
        ("own.jsonl", ['{"text": 3, "label": 1}'], "'text' is 3, not a text"),
        ("own.jsonl", ['{"text": "\\ud800", "label": 1}'], "half of a surrogate pair"),
        ("own.jsonl", ['{"text": "a", "label": [1]}'], r"'label' is \[1\], not a class"),
        ("own.jsonl", ['{"text": "a", "label": true}'], "'label' is true, not a class"),
    ],
)
def test_bad_files_are_errors_that_name_the_line(name: str, lines: list, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_examples(wrote(tmp_path / name, *lines), "train", GLUE_TASKS["csv"])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_examples(str(tmp_path / "nowhere.tsv"), "train", GLUE_TASKS["rte"])
    (tmp_path / "latin.tsv").write_bytes("sentence\tlabel\né\t1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_examples(str(tmp_path / "latin.tsv"), "train", GLUE_TASKS["sst2"])
    with pytest.raises(DataError, match="needs your own files: give --train-data"):
        read_examples(None, "train", GLUE_TASKS["csv"])
    file = wrote(tmp_path / "train.tsv", *TSV["rte"][:1], "0\tOne.\tTwo.\tperhaps")
    with pytest.raises(
        DataError, match="'perhaps', not one of 'entailment', 'not_entailment', or their numbers"
    ):
        read_examples(file, "train", GLUE_TASKS["rte"])


def test_hugging_faces_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's rows, as documented for nyu-mll/glue; the library itself is tested with corpora."""
    asked = []
    rows = {
        "mnli": {"premise": "One.", "hypothesis": "Two.", "label": 2, "idx": 7},
        "mrpc": {"sentence1": "One.", "sentence2": "Two.", "label": 1, "idx": 7},
        "stsb": {"sentence1": "One.", "sentence2": "Two.", "label": 3.5, "idx": 7},
        "qnli": {"question": "One.", "sentence": "Two.", "label": 0, "idx": 7},
    }

    def load_dataset(name: str, subset: str, *, split: str, streaming: bool) -> list:
        assert not streaming
        asked.append((name, subset, split))
        return [{**rows[subset], "label": -1}] if split.startswith("test") else [rows[subset]]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for name, label in (
        ("mnli", "contradiction"),
        ("mrpc", "equivalent"),
        ("stsb", 3.5),
        ("qnli", "entailment"),
    ):
        for split in ("train", "validation", "test"):
            found = read_examples(None, split, GLUE_TASKS[name])
            assert found.examples[0].texts == ("One.", "Two.") and found.examples[0].id == "7"
            assert {one.label for one in found.examples} == {None if split == "test" else label}
    assert ("nyu-mll/glue", "mnli", "validation_mismatched") in asked
    assert ("nyu-mll/glue", "mnli", "test_matched") in asked and ("nyu-mll/glue", "qnli", "test") in asked


@pytest.mark.parametrize("prefix", ["", "hf:"])
@pytest.mark.parametrize("parts", ["one", "both"])
def test_a_folder_of_save_to_disk(prefix: str, parts: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(
        [{"sentence1": "One.", "sentence2": "Two.", "label": label} for label in (0, 1)]
    )
    saved = one if parts == "one" else datasets.DatasetDict({"train": one, "validation": one})
    saved.save_to_disk(str(tmp_path / "saved"))
    for split in ("train", "validation"):
        found = read_examples(f"{prefix}{tmp_path / 'saved'}", split, GLUE_TASKS["rte"])
        assert [example.texts for example in found.examples] == [("One.", "Two.")] * 2
        assert [example.label for example in found.examples] == ["entailment", "not_entailment"]
    if parts == "both":
        with pytest.raises(DataError, match="its splits are: train, validation"):
            read_examples(f"{prefix}{tmp_path / 'saved'}", "test", GLUE_TASKS["rte"])


def test_a_configuration_is_chosen(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for number, name in enumerate(("de", "en")):
        row = {"sentence1": name, "sentence2": "Two.", "label": number}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    names = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("de", "en"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    found = read_examples(f"hf:{tmp_path}:en", "train", GLUE_TASKS["rte"])
    assert [example.texts[0] for example in found.examples] == ["en"]
