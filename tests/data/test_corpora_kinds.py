"""What a file holds is known by its first bytes: rows, TFRecords, compressed text, and what is no text."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from data import DataError, PretrainingDataOptions, prepare_pretraining_data
from data.corpora import open_corpus, tfrecord_notes
from data.tfrecord import masked_crc32c

TEXT = "First line.\nSecond line.\n\nAnother document.\n"
DOCUMENTS = ["First line.\nSecond line.", "Another document."]


def documents(corpus: object, **options: str) -> list:
    return list(open_corpus(str(corpus), **options).documents())


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return content.getvalue()


@pytest.mark.parametrize("name", ["a.txt", "a", "a.text", "a.log"])
@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_compressed_text_is_read_whatever_its_name(tmp_path, name, compress):
    (tmp_path / name).write_bytes(compress(TEXT.encode()))
    assert documents(tmp_path / name) == DOCUMENTS
    # The compression is part of the fingerprint, since it decides how the bytes are read.
    first = open_corpus(str(tmp_path / name)).fingerprint()
    (tmp_path / name).write_bytes(compress(TEXT.encode() + b"x"))
    assert open_corpus(str(tmp_path / name)).fingerprint() != first


NO_TEXT = {
    "UTF-16": "\ufeffText, and more of it.".encode("utf-16-le"),
    "UTF-16 ": TEXT.encode("utf-16-le"),
    "UTF-16  ": TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "zip": zipped(),
    "tar": tarred(),
    "Zstandard": b"\x28\xb5\x2f\xfd" + b"x" * 50,
    "PDF": b"%PDF-1.7\n",
    "SQLite": b"SQLite format 3\0",
    "XML or HTML": b'<?xml version="1.0"?>\n<a/>',
    "XML or HTML ": b"\xef\xbb\xbf\n <!DOCTYPE html>",
    "XML or HTML  ": b'<mediawiki xml:lang="en">',
    "XML or HTML   ": b'<doc id="12" url="x" title="y">\nText.\n</doc>\n',
    "binary": bytes(range(256)) * 4,
    "Arrow": b"\xff\xff\xff\xff\x10\0\0\0",
    "compressed TFRecord": gzip.compress(record(b"x" * 30)),
    "compressed Parquet": gzip.compress(b"PAR1\0\0"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("name", ["a.txt", "wiki_00", "a.text.gz"])
def test_what_is_no_text_is_refused_with_the_way_to_text(tmp_path, kind, name):
    content = NO_TEXT[kind]
    if name.endswith(".gz"):
        content = content if kind.startswith("compressed") else gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{name}' is no plain text but {kind.strip()}, by its first bytes: \w+"
    ):
        open_corpus(str(tmp_path / name))


ROWS = [{"id": 1, "text": "First line.\nSecond line."}, {"id": 2, "text": "Another document."}]


def write_rows(file: Path) -> None:
    suffix = file.suffixes[0]
    if suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {key: [row[key] for row in ROWS] for key in ("id", "text")}
        parquet.write_table(pyarrow.table(columns), file)
        return
    if suffix in (".csv", ".tsv"):
        between = "," if suffix == ".csv" else "\t"
        content = f"id{between}text\n" + "".join(f'{row["id"]}{between}"{row["text"]}"\n' for row in ROWS)
    elif suffix == ".json":
        content = json.dumps(ROWS, indent=1)
    else:
        content = "".join(json.dumps(row) + "\n" for row in ROWS)
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(file.suffix, bytes)
    file.write_bytes(packed(content.encode()))


NAMES = [
    "a.jsonl",
    "a.json",
    "a.csv",
    "a.tsv",
    "a.parquet",
    "a.txt",
    "a",
    "a.jsonl.gz",
    "a.csv.gz",
    "a.jsonl.bz2",
]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_documents(tmp_path, monkeypatch, name):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "rows" / name
    file.parent.mkdir()
    if name in ("a.txt", "a"):
        write_rows(file.with_suffix(".jsonl"))
        file.with_suffix(".jsonl").rename(file)
    else:
        write_rows(file)
    for source in (file, file.parent, file.parent / "*") if name != "a" else (file,):
        corpus = open_corpus(str(source))
        assert list(corpus.documents()) == DOCUMENTS
        assert "with the text in column 'text'" in corpus.notes[-1]
        with pytest.raises(DataError, match="no column 'body'; its columns are: id, text"):
            documents(source, text_column="body")
    assert open_corpus(str(file), text_column="id").fingerprint() != corpus.fingerprint()


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_words_for_missing_values_are_texts(tmp_path, monkeypatch, name, separator):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [("text", "id"), ("NA", "1"), ("", "2"), ("null", "3"), ("None", ""), ("A text.", "5")]
    (tmp_path / name).write_text("".join(separator.join(row) + "\n" for row in rows))
    assert documents(tmp_path / name) == ["NA", "null", "None", "A text."]


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.csv"])
def test_compressed_rows_whose_name_hides_it_are_told(tmp_path, name):
    pytest.importorskip("datasets")
    content = b"text,id\nA text.,1\n" if name == "a.csv" else b'{"text": "A text."}\n'
    (tmp_path / name).write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=rf"is compressed: .* mv {name} {name}.gz"):
        documents(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_damaged_rows_are_told(tmp_path, monkeypatch, name):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_rows(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=rf"cannot read .*{name} as "):
        documents(tmp_path / name)


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
def test_texts_that_are_cut_into_cells_are_told(tmp_path, name, between):
    pytest.importorskip("datasets")
    (tmp_path / name).write_text(f"text\nHello{between} world.\n")
    with pytest.raises(
        DataError, match=r"its first row has 2 cells, but the header names 1 column.*double quotes"
    ):
        documents(tmp_path / name)


def test_prose_that_begins_with_brackets_is_text(tmp_path):
    for text in ("[Music] Hello.", "{see below} Hello.", '["Hello," he said.', "<b> Hello.", "{}", "[]"):
        (tmp_path / "a.txt").write_text(text)
        assert documents(tmp_path / "a.txt") == [text]


def test_a_folder_says_how_many_files_were_read(tmp_path):
    for name in ("a.txt", "b/c.txt.gz", "notes.md", "b/run.py", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = TEXT.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    corpus = open_corpus(str(tmp_path))
    assert list(corpus.documents()) == DOCUMENTS * 2
    assert corpus.notes == (
        f"folder {tmp_path}: 2 files read, 2 passed over ('run.py' for example: a glob would read it)",
    )
    assert open_corpus(str(tmp_path / "a.txt")).notes == ()


@pytest.mark.parametrize("other", ["b.jsonl", "b.csv", "b.tfrecord", "records-00000-of-00001", "b.zip.txt"])
@pytest.mark.parametrize("source", ["", "*"])
def test_two_kinds_in_one_folder_are_refused(tmp_path, other, source):
    (tmp_path / "a.txt").write_text(TEXT)
    if "record" in other:
        (tmp_path / other).write_bytes(record(b"x" * 30))
    elif "zip" in other:
        (tmp_path / other).write_bytes(zipped())
    else:
        write_rows(tmp_path / other)
    expected = "is no plain text but zip" if "zip" in other else "has files of two kinds: .* with a glob"
    with pytest.raises(DataError, match=expected):
        open_corpus(str(tmp_path / source))
    with pytest.raises(DataError, match=expected):
        tfrecord_notes(str(tmp_path / source))


@pytest.mark.parametrize("name", ["a.tfrecord", "wiki.tf_record", "part-00000-of-00002", "a.txt"])
def test_tfrecords_are_known_whatever_their_name(tmp_path, name):
    (tmp_path / name).write_bytes(record(b"x" * 30))
    for source in (tmp_path / name, tmp_path, tmp_path / "*"):
        assert tfrecord_notes(str(source)) is not None
        with pytest.raises(DataError, match="already masked"):
            open_corpus(str(source))
    assert tfrecord_notes("python-docs") is None and tfrecord_notes("hf:x") is None


def options(corpus: Path, **keys: object) -> PretrainingDataOptions:
    usual = {"sequence_length": 32, "vocab_size": 200, "preprocessing_workers": 0}
    return PretrainingDataOptions(**{**usual, "corpus": str(corpus), **keys})


def notes_on(text: str, folder: Path, **keys: object) -> str:
    (folder / "a.txt").write_text(text)
    prepared = prepare_pretraining_data(
        options(folder / "a.txt", **keys), cache_folder=folder / "cache", progress=False
    )
    return "\n".join(prepared.statistics.notes)


def test_labels_that_are_nearly_all_random_are_told(tmp_path, documents):
    lines = [line for document in documents[:6] for line in document.split("\n")]
    told = notes_on("\n\n".join(lines), tmp_path)
    assert "warning: " in told and "of the next-sentence labels are random instead of half" in told
    assert notes_on("\n\n".join(documents[:12]), tmp_path) == ""


@pytest.mark.parametrize("count", [2, 3, 41])
def test_a_small_corpus_holds_out_a_document(tmp_path, documents, count):
    for start in range(0, 3):
        few = documents[start : start + 20]
        texts = [few[number % 20] + f"\nThis is the copy {number // 20} of it." for number in range(count)]
        (tmp_path / "a.txt").write_text("\n\n".join(texts))
        data = prepare_pretraining_data(
            options(tmp_path / "a.txt", validation_fraction=0.001),
            cache_folder=tmp_path / "cache",
            progress=False,
        )
        assert data.statistics.validation.documents == 1 and data.validation.num_examples > 0
        assert data.statistics.train.documents == count - 1
