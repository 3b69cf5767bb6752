"""open_corpus: the documents of each form, what changes the fingerprint, and the error for each mistake."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import pytest

from data.corpora import open_corpus, text
from data.files import DataError

TEXT = "First  line.\nSecond\tline.\n\n \nAnother document.\r\n\n\n"
DOCUMENTS = ["First line.\nSecond line.", "Another document."]


def documents(corpus: object) -> list:
    return list(open_corpus(str(corpus)).documents())


@pytest.mark.parametrize(
    ("name", "opener"),
    [("a.txt", open), ("a.txt.gz", gzip.open), ("a.xz", lzma.open), ("a.log.gz", gzip.open)],
)
def test_blank_lines_part_documents_whatever_the_compression(tmp_path, name, opener):
    with opener(tmp_path / name, "wb") as stream:
        stream.write(TEXT.encode())
    corpus = open_corpus(str(tmp_path / name))
    assert list(corpus.documents()) == DOCUMENTS
    assert list(corpus.documents()) == DOCUMENTS  # again from the start


def test_a_folder_gives_its_text_files_in_sorted_order_and_each_end_of_file_ends_a_document(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "c.txt").write_text("three")
    (tmp_path / "b" / "x.txt").write_text("two")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one"))
    for other in ("notes.md", "data.json.gz", ".hidden/d.txt", ".e.txt"):
        (tmp_path / other).write_bytes(b"\xff")
    assert documents(tmp_path) == ["one", "two", "three"]
    assert documents(tmp_path / "**" / "*.txt") == ["two", "three"]
    assert documents(tmp_path / "[ac].*") == ["one", "three"]


def test_a_byte_order_mark_and_unicode_survive(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffÜber naïve façades\u00a0— 日本", encoding="utf-8")
    assert documents(tmp_path) == ["Über naïve façades — 日本"]


def test_a_file_without_blank_lines_is_cut_so_that_memory_stays_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_DOCUMENT_CHARACTERS", 100)
    lines = [f"This is line number {i}." for i in range(50)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    found = documents(tmp_path)
    assert max(map(len, found)) <= 130
    assert "\n".join(found).split("\n") == lines


@pytest.mark.parametrize("opener", [open, gzip.open])
@pytest.mark.parametrize(
    "line",
    ["ordinary words of a line " * 40, "日本語" * 200, "x" * 999, " " + "é" * 700, "ab " * 33 + "c" * 300],
)
def test_an_endless_line_is_cut_between_words_so_that_memory_stays_bounded(
    tmp_path, monkeypatch, line, opener
):
    monkeypatch.setattr(text, "MAX_DOCUMENT_CHARACTERS", 100)
    file = tmp_path / ("a.txt.gz" if opener is gzip.open else "a.txt")
    with opener(file, "wb") as stream:
        stream.write(f"first\n\n{line}\n\nlast".encode())
    found = documents(file)
    assert found[0] == "first" and found[-1] == "last" and max(map(len, found)) <= 200
    words = "\n".join(found[1:-1]).split()
    assert "".join(words) == line.replace(" ", "")
    if line.startswith("ordinary"):
        assert words == line.split()


@pytest.mark.parametrize("limit", [0, 10**6])  # a large file's stat, a small one's content
def test_the_fingerprint_changes_with_content_and_set_of_files(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(text, "HASH_CONTENT_UP_TO_BYTES", limit)
    file = tmp_path / "a.txt"
    file.write_text("one")
    os.utime(file, ns=(1, 1))
    seen = [open_corpus(str(tmp_path)).fingerprint()]
    assert open_corpus(str(file)).fingerprint() == seen[0]
    file.write_text("two")
    seen.append(open_corpus(str(tmp_path)).fingerprint())
    (tmp_path / "b.txt").write_text("one")
    seen.append(open_corpus(str(tmp_path)).fingerprint())
    assert len(set(seen)) == 3


def test_not_utf8_names_file_line_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nalso fine\nabc \xe9t\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt' is not UTF-8 text: line 3 has byte 0xe9 at its byte 4"):
        documents(tmp_path)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_cut_off_or_damaged_archive_is_named(tmp_path, suffix, compress):
    whole = compress(os.urandom(5000).hex().encode() + b"\n")
    for content in (
        whole[: len(whole) // 2],
        whole[:1000] + b"\0" * 100 + whole[1100:],
        b"no archive at all",
    ):
        (tmp_path / f"a.txt{suffix}").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.txt{suffix}' is a damaged or cut-off {suffix} file"):
            documents(tmp_path)


def test_an_unreadable_file_is_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("text")
    corpus = open_corpus(str(file))
    file.unlink()
    for ask in (corpus.fingerprint, lambda: list(corpus.documents())):
        with pytest.raises(DataError, match=r"cannot read .*a\.txt': No such file"):
            ask()


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("\n  \n\n")
    with pytest.raises(DataError, match="has no text"):
        documents(tmp_path)


@pytest.mark.parametrize("name", ["missing.txt", "*.none", "nowhere/at/all"])
def test_no_matching_file_names_what_was_looked_for(tmp_path, name):
    with pytest.raises(DataError, match="no file matches.*" + name.replace("*", r"\*")):
        open_corpus(str(tmp_path / name))
    with pytest.raises(DataError, match="no text file in folder"):
        open_corpus(str(tmp_path))


@pytest.mark.parametrize("name", ["python-doc", "Python-Docs", "pythondocs"])
def test_a_typo_is_answered_with_the_nearest_name_and_all_legal_forms(name):
    with pytest.raises(DataError, match=r"Did you mean 'python-docs'\? Legal forms: .*hf:NAME.*glob"):
        open_corpus(name)


def test_a_typo_in_a_local_name_is_answered_too(tmp_path, monkeypatch):
    (tmp_path / "my_corpus").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'my_corpus'"):
        open_corpus("my_corpsu")


@pytest.mark.parametrize("name", ["", "hf:", "wikipedia"])
def test_an_unknown_form_lists_the_legal_ones(name):
    with pytest.raises(DataError, match=r"unknown corpus .*Legal forms: python-docs .*hf:NAME"):
        open_corpus(name)


def test_tfrecords_are_no_text():
    with pytest.raises(DataError, match="has token ids"):
        open_corpus("somewhere/wiki.tfrecord")


def test_a_large_real_corpus_is_streamed():
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "corpus"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    corpus = open_corpus(str(folder / "validation.txt.gz"))
    found = list(corpus.documents())
    assert len(found) == 29  # documents.tsv
    assert sum(len(document.split()) for document in found) == 1885140
