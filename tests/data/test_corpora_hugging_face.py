"""hf: corpora, read from real datasets that the tests write."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from data.corpora import open_corpus, tfrecord_notes  # noqa: E402
from data.files import DataError  # noqa: E402

ROWS = ["One paragraph.\n\nAnother   one.", "", "  \n ", "Second document.", None]
DOCUMENTS = ["One paragraph.\nAnother one.", "Second document."]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["parquet", "jsonl"])
def folder(request, tmp_path, cache):
    folder = tmp_path / "dataset"
    folder.mkdir()
    _write(folder / f"train.{request.param}", ROWS)
    return folder


def _write(file, texts):
    if file.suffix == ".parquet":
        table = pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})
        parquet.write_table(table, file)
    else:
        lines = (json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
        file.write_text("".join(f"{line}\n" for line in lines))


def test_each_row_is_a_document_whatever_blank_lines_it_has(folder):
    corpus = open_corpus(f"hf:{folder}")
    assert list(corpus.documents()) == DOCUMENTS
    assert list(corpus.documents()) == DOCUMENTS
    assert corpus.name == f"hf:{folder}"


def test_the_fingerprint_changes_with_the_files_and_the_choice(folder):
    first = open_corpus(f"hf:{folder}").fingerprint()
    assert open_corpus(f"hf:{folder}").fingerprint() == first
    assert open_corpus(f"hf:{folder}", split="test").fingerprint() != first
    assert open_corpus(f"hf:{folder}", text_column="id").fingerprint() != first
    (file,) = folder.iterdir()
    _write(file, ["New text."])
    os.utime(file, ns=(10**18, 10**18))
    assert open_corpus(f"hf:{folder}").fingerprint() != first


def test_a_missing_column_names_those_there_are(folder):
    with pytest.raises(DataError, match="no column 'content'; its columns are: id, text"):
        list(open_corpus(f"hf:{folder}", text_column="content").documents())


def test_a_column_that_is_no_text_is_an_error(folder):
    with pytest.raises(DataError, match=r"column 'id' .* holds int, not text"):
        list(open_corpus(f"hf:{folder}", text_column="id").documents())


def test_a_missing_split_is_an_error(folder):
    with pytest.raises(DataError, match=r"split 'nonesuch'.*Check name, subset and split"):
        list(open_corpus(f"hf:{folder}", split="nonesuch").documents())


def test_a_split_without_text_is_an_error(folder):
    (file,) = folder.iterdir()
    _write(file, ["", " "])
    with pytest.raises(DataError, match="has no text"):
        list(open_corpus(f"hf:{folder}").documents())


def test_a_dataset_that_cannot_be_had_is_a_clear_error(cache, monkeypatch):
    # The library's own offline mode: without it, it would try for half a minute.
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot read hf:no-such-owner/no-such-dataset.*and the network"):
        list(open_corpus("hf:no-such-owner/no-such-dataset").documents())


@pytest.mark.parametrize("parts", [None, "train", "test"])
def test_a_folder_written_by_save_to_disk_is_read(tmp_path, cache, parts):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ROWS})
    saved = rows if parts is None else datasets.DatasetDict({parts: rows})
    saved.save_to_disk(str(tmp_path / "saved"))
    corpus = open_corpus(str(tmp_path / "saved"))
    assert corpus.name == f"hf:{tmp_path / 'saved'}" == open_corpus(f"hf:{tmp_path / 'saved'}").name
    assert tfrecord_notes(str(tmp_path / "saved")) is None
    if parts == "test":
        for ask in (corpus.fingerprint, lambda: list(corpus.documents())):
            with pytest.raises(DataError, match="has no split 'train'; its splits are: test"):
                ask()
        corpus = open_corpus(f"hf:{tmp_path / 'saved'}", split="test")
    assert list(corpus.documents()) == DOCUMENTS
    first = corpus.fingerprint()
    datasets.Dataset.from_dict({"text": ["New."]}).save_to_disk(str(tmp_path / "other"))
    assert open_corpus(f"hf:{tmp_path / 'other'}").fingerprint() != first == corpus.fingerprint()


def test_changed_files_of_a_named_configuration_are_read_again(tmp_path, cache):
    from data.squad import open_questions

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n---\n")
    question = {"id": "1", "question": "What?", "answers": {"text": ["Old"], "answer_start": [0]}}
    found = []
    for text in ("Old.", "Old too."):
        (folder / "en.jsonl").write_text(json.dumps({"text": text, "context": text, **question}) + "\n")
        corpus = open_corpus(f"hf:{folder}:en")
        context = open_questions(f"hf:{folder}:en", "train", version="1.1").questions[0].context
        found.append((list(corpus.documents()), corpus.fingerprint(), context))
    (first, before, old), (second, after, new) = found
    assert (first, second) == (["Old."], ["Old too."]) and (old, new) == ("Old.", "Old too.")
    assert before != after == open_corpus(f"hf:{folder}:en").fingerprint()


def test_a_configuration_is_chosen_by_name(tmp_path, cache):
    folder = tmp_path / "data:set"
    folder.mkdir()
    for name in ("one", "two"):
        _write(folder / f"{name}.jsonl", [f"Text of {name}."])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n- config_name: two\n"
        "  data_files: two.jsonl\n---\n"
    )
    for corpus in (open_corpus(f"hf:{folder}:two"), open_corpus(f"hf:{folder}", subset="two")):
        assert list(corpus.documents()) == ["Text of two."]
    with pytest.raises(DataError, match=r"'one', 'two'"):  # the names of the library's message
        list(open_corpus(f"hf:{folder}").documents())
