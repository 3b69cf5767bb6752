"""From options to data, end to end on real text: held-out documents, caching, refused options."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import pytest
import torch

from data import (
    DataError,
    PretrainingData,
    PretrainingDataOptions,
    Tokenizer,
    collate,
    open_corpus,
    prepare_pretraining_data,
    train_tokenizer,
    unigram_entropy,
)
from data.corpora import Corpus
from data.tokenizer import SPECIAL_TOKENS
from tests.data.test_tfrecord import SAMPLES, needs_samples

WIKITEXT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "wikitext-2" / "valid.txt.gz"


@pytest.fixture(scope="module")
def options(corpus: Corpus) -> PretrainingDataOptions:
    return PretrainingDataOptions(
        corpus=corpus.name,
        sequence_length=64,
        mask_tokens=10,
        vocab_size=800,
        validation_fraction=0.2,
        seed=1,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def prepare(  # type: ignore[no-untyped-def]
    options: PretrainingDataOptions, cache: Path, identity: Optional[str] = None, **changes: object
):
    changed = dataclasses.replace(options, **changes)  # type: ignore[arg-type]
    return prepare_pretraining_data(changed, cache_folder=cache, progress=False, identity=identity)


def test_a_corpus_becomes_training_and_validation_data(
    options: PretrainingDataOptions, cache: Path, documents: List[str]
) -> None:
    data = prepare(options, cache)
    assert data.tokenizer.vocab_size == 800
    assert data.statistics.corpus == options.corpus and data.statistics.vocabulary == 800
    for dataset, counts in (
        (data.train, data.statistics.train),
        (data.validation, data.statistics.validation),
    ):
        assert dataset.num_examples == counts.examples > 50
        assert 0 < counts.random_next < counts.examples
        assert counts.documents < counts.sentences < counts.tokens
        assert 3 < unigram_entropy(dataset) < np.log(800)
    assert data.statistics.train.documents + data.statistics.validation.documents == len(documents)
    assert data.train.shuffle and not data.validation.shuffle
    batch = collate(data.train.__getitems__(range(8)))
    assert [tuple(field.shape) for field in batch] == [(8, 64)] * 3 + [(8, 10)] * 2 + [(8,)]
    assert "[CLS]" in data.tokenizer.decode(batch[0][0].tolist())


def test_validation_is_the_same_in_every_epoch(options: PretrainingDataOptions, cache: Path) -> None:
    validation = prepare(options, cache).validation
    n = validation.num_examples
    for first, second in zip(
        collate(validation.__getitems__(range(n))), collate(validation.__getitems__(range(n, 2 * n)))
    ):
        assert torch.equal(first, second)


def test_other_runs_hold_out_the_same_documents(options: PretrainingDataOptions, cache: Path) -> None:
    """Another seed and sequence length, as in phase 2: the same documents, and so as many tokens."""
    one = prepare(options, cache).statistics
    two = prepare(options, cache, seed=2, sequence_length=32, mask_tokens=5).statistics
    assert one.validation.tokens == two.validation.tokens and one.train.tokens == two.train.tokens
    assert one.validation.examples != two.validation.examples


def test_a_second_run_reads_the_cache(options: PretrainingDataOptions, cache: Path) -> None:
    first = prepare(options, cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    second = prepare(options, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == before
    assert second.statistics == first.statistics
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    for ours, theirs in zip(first.train[5], second.train[5]):
        assert torch.equal(ours, theirs)


def test_options_of_masking_do_not_preprocess_again(options: PretrainingDataOptions, cache: Path) -> None:
    prepare(options, cache)
    folders = sorted((cache / "examples").iterdir())
    data = prepare(options, cache, whole_word_masking=True, dynamic_masking=False, masked_lm_probability=0.3)
    assert sorted((cache / "examples").iterdir()) == folders
    labels = collate(data.train.__getitems__(range(100)))[4]
    assert (labels != -100).sum() > 800


def test_a_changed_corpus_is_preprocessed_again(options: PretrainingDataOptions, tmp_path: Path) -> None:
    text = Path(options.corpus).read_text(encoding="utf-8")
    copy = tmp_path / "copy.txt"
    copy.write_text(text, encoding="utf-8")
    documents = []
    for more in ("", "\nMore text.\n"):
        copy.write_text(text + more, encoding="utf-8")
        counts = prepare(options, tmp_path, corpus=str(copy)).statistics
        documents.append(counts.train.documents + counts.validation.documents)
    assert documents[1] == documents[0] + 1
    assert len(list((tmp_path / "vocabularies").iterdir())) == 2


def test_a_validation_corpus_takes_nothing_from_training(
    options: PretrainingDataOptions, cache: Path, documents: List[str], tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("A first sentence.\nA second one.\nA third.\n\n" * 3 + "Another text.\nIts end.\n")
    data = prepare(options, cache, validation_corpus=str(other))
    assert data.statistics.train.documents == len(documents)
    assert data.statistics.validation.documents == 4
    assert data.validation.num_examples == data.statistics.validation.examples > 0


def test_nothing_is_held_out_when_nothing_is_asked(options: PretrainingDataOptions, cache: Path) -> None:
    data = prepare(options, cache, validation_fraction=0.0)
    assert data.validation is None and data.statistics.validation is None


def test_a_damaged_shard_is_found_before_training(options: PretrainingDataOptions, tmp_path: Path) -> None:
    prepare(options, tmp_path)
    shard = next(tmp_path.rglob("train-*.shard"))
    shard.write_bytes(b"")
    with pytest.raises(DataError, match=f"{shard} is damaged"):
        prepare(options, tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sequence_length": 7}, "sequence_length 7 is outside of 8 to 65535"),
        ({"sequence_length": 65536}, "sequence_length 65536 is outside of 8 to 65535"),
        ({"corpus": ""}, "corpus is empty"),
        ({"validation_corpus": ""}, "validation_corpus is empty"),
        ({"tokenizer": ""}, "tokenizer is empty"),
        ({"mask_tokens": 0}, "mask_tokens 0"),
        ({"mask_tokens": 65}, "mask_tokens 65"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"masked_lm_probability": 1.5}, "masked_lm_probability"),
        ({"preprocessing_workers": -1}, "preprocessing_workers"),
    ],
)
def test_impossible_options_are_refused(
    options: PretrainingDataOptions, changes: Dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(options, **changes)  # type: ignore[arg-type]


def test_a_vocabulary_larger_than_the_models_is_refused(
    options: PretrainingDataOptions, cache: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    with pytest.raises(DataError, match="has 1000 tokens, 200 more than vocab_size 800"):
        prepare(options, cache, tokenizer=str(tmp_path))
    assert prepare(options, cache, tokenizer=str(tmp_path), vocab_size=1000).statistics.vocabulary == 1000


def test_an_unknown_corpus_is_refused(options: PretrainingDataOptions, cache: Path) -> None:
    with pytest.raises(DataError, match="python-doc"):
        prepare(options, cache, corpus="python-doc")


def test_the_longest_sequences_survive(
    options: PretrainingDataOptions, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Nearly all tokens are in one segment, whose length needs all 16 bits."""
    corpus, vocabulary = tmp_path / "long.txt", tmp_path / "vocabulary"
    tokenizer.save(vocabulary)
    corpus.write_text("\n\n".join("\n".join([word] + [f"{word} " * 65531] * 2) for word in ("a", "b")))
    changes = {"corpus": str(corpus), "tokenizer": str(vocabulary), "vocab_size": 1000}
    changes.update(sequence_length=65535, validation_fraction=0.0, short_sequence_probability=0.0)
    data = prepare(options, tmp_path, **changes)
    _, attention, types, *_ = collate(data.train.__getitems__(range(data.train.num_examples)))
    assert attention.sum(dim=1).max() == 65535
    assert types.sum(dim=1).max() > 2**15


LINES = "A first sentence.\nA second one, longer than the first.\nA third one, which isn't.\nThe last.\n"


def test_one_document_trains_no_next_sentence_prediction(
    options: PretrainingDataOptions, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    corpus, vocabulary = tmp_path / "one.txt", tmp_path / "vocabulary"
    tokenizer.save(vocabulary)
    changes = {"corpus": str(corpus), "tokenizer": str(vocabulary), "vocab_size": 1000}
    for copies, is_noted in ((1, True), (5, False)):
        corpus.write_text("\n".join(f"Text {copy}.\n{LINES}" for copy in range(copies)))
        data = prepare(options, tmp_path, **changes, validation_fraction=0.0)
        assert any("next-sentence" in note for note in data.statistics.lines()) == is_noted
        assert (data.statistics.train.random_next == 0) == is_noted


@pytest.mark.parametrize(
    "fraction, message",
    [
        (
            1e-9,
            "no document was held out: the corpus .*one.txt has 1 document.*, raise validation_fraction or",
        ),
        (1 - 1e-9, "no document is left to train on: the corpus .*one.txt has 1 document.*, lower"),
    ],
)
def test_a_part_without_a_document_is_explained(
    options: PretrainingDataOptions, tokenizer: Tokenizer, tmp_path: Path, fraction: float, message: str
) -> None:
    corpus, vocabulary = tmp_path / "one.txt", tmp_path / "vocabulary"
    tokenizer.save(vocabulary)
    corpus.write_text(LINES)
    changes = {"corpus": str(corpus), "tokenizer": str(vocabulary), "vocab_size": 1000}
    with pytest.raises(DataError, match=message):
        prepare(options, tmp_path, **changes, validation_fraction=fraction)


@needs_samples
def test_a_part_without_a_record_is_explained(options: PretrainingDataOptions, tmp_path: Path) -> None:
    changes = {"corpus": str(SAMPLES / "sample_text.tfrecord"), "sequence_length": 128, "mask_tokens": 20}
    for fraction, message in (
        (1e-9, "no record was held out.* 45 record.*raise"),
        (1 - 1e-9, "to train on.*lower"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(options, tmp_path, **changes, vocab_size=30522, validation_fraction=fraction)


def same_examples(one: PretrainingData, two: PretrainingData) -> bool:
    pairs = zip((one.train, one.validation), (two.train, two.validation))
    fetched = (
        (ours.__getitems__(range(100)).batch, theirs.__getitems__(range(100)).batch) for ours, theirs in pairs
    )
    return all(torch.equal(a, b) for ours, theirs in fetched for a, b in zip(ours, theirs))


@pytest.mark.parametrize("with_validation_corpus", [False, True])
def test_prepared_data_is_found_by_its_identity_without_the_corpus(
    options: PretrainingDataOptions, documents: List[str], tmp_path: Path, with_validation_corpus: bool
) -> None:
    corpus, other, vocabulary = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "vocabulary"
    corpus.write_text("\n\n".join(documents))
    other.write_text("\n\n".join(documents[:20]))
    changes: Dict[str, object] = {"corpus": str(corpus)}
    if with_validation_corpus:  # and a separate vocabulary, which is deleted too
        train_tokenizer(open_corpus(str(corpus)), 800).save(vocabulary)
        changes.update(validation_corpus=str(other), tokenizer=str(vocabulary))
    first = prepare(options, tmp_path / "cache", **changes)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    corpus.unlink()
    other.unlink()
    shutil.rmtree(vocabulary, ignore_errors=True)
    shutil.rmtree(tmp_path / "cache" / "vocabularies", ignore_errors=True)
    changes["preprocessing_workers"] = 1
    again = prepare(options, tmp_path / "cache", identity=first.identity, **changes)
    assert again.identity == first.identity and again.statistics == first.statistics
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert same_examples(first, again)
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or path.stat().st_mtime_ns == kept[path]


def test_identities_are_of_content(options: PretrainingDataOptions, cache: Path, tmp_path: Path) -> None:
    """Equal in another cache and for a copy of the corpus; different for anything that changes the data."""
    first = prepare(options, cache).identity
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(options.corpus).read_bytes())
    there = prepare(options, tmp_path / "cache", corpus=str(copy), preprocessing_workers=1, mask_tokens=9)
    assert there.identity == first
    assert prepare(options, tmp_path / "new", corpus=str(copy), identity=first).identity == first
    changes: List[Dict[str, object]] = [{"seed": 2}, {"sequence_length": 32}, {"vocab_size": 700}]
    changes += [{"validation_fraction": 0.3}, {"validation_corpus": str(copy)}]
    assert len({first, *(prepare(options, cache, **change).identity for change in changes)}) == 6


def test_changed_data_is_not_resumed_with(options: PretrainingDataOptions, tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(options.corpus).read_bytes())
    first = prepare(options, tmp_path / "cache", corpus=str(copy)).identity
    with pytest.raises(DataError, match="was prepared with seed 1, not 2"):
        prepare(options, tmp_path / "cache", corpus=str(copy), seed=2, identity=first)
    copy.write_text(copy.read_text() + "\nMore.\n")
    assert prepare(options, tmp_path / "cache", corpus=str(copy), identity=first).identity == first
    with pytest.raises(DataError, match=r"copy.txt or its vocabulary has changed.*--checkpoint"):
        prepare(options, tmp_path / "empty", corpus=str(copy), identity=first)


@pytest.mark.parametrize(
    "lost", ["shards.json", "vocab.txt", "tokenizer.json", "fingerprint.txt", "manifest.json"]
)
@pytest.mark.parametrize("truncated", [False, True])
def test_what_is_lost_of_prepared_data_is_prepared_again(
    options: PretrainingDataOptions, tmp_path: Path, lost: str, truncated: bool
) -> None:
    first = prepare(options, tmp_path)
    folder = "examples" if lost == "manifest.json" else "prepared"
    (path,) = (tmp_path / folder).rglob(lost)
    path.write_bytes(path.read_bytes()[:-20]) if truncated else path.unlink()
    if truncated and lost == "manifest.json":
        with pytest.raises(DataError, match="is damaged"):
            prepare(options, tmp_path, identity=first.identity)
        return
    again = prepare(options, tmp_path, identity=first.identity)
    assert again.identity == first.identity and same_examples(first, again)
    assert again.tokenizer.vocabulary == first.tokenizer.vocabulary


@needs_samples
def test_tfrecords_have_the_identity_of_their_content(
    options: PretrainingDataOptions, tmp_path: Path
) -> None:
    changes = {"sequence_length": 128, "mask_tokens": 20, "vocab_size": 30522}
    copy = tmp_path / "a.tfrecord"
    content = (SAMPLES / "sample_text.tfrecord").read_bytes()
    copy.write_bytes(content)
    first = prepare(options, tmp_path, corpus=str(SAMPLES / "sample_text.tfrecord"), **changes).identity
    assert prepare(options, tmp_path, corpus=str(copy), **changes, identity=first).identity == first
    vocabulary = tmp_path / "vocabulary"  # may be gone when a run resumes
    Tokenizer([*SPECIAL_TOKENS, "a"]).save(vocabulary)
    named = {"corpus": str(copy), "tokenizer": str(vocabulary), **changes}
    with_tokenizer = prepare(options, tmp_path, **named).identity
    assert with_tokenizer != first
    shutil.rmtree(vocabulary)
    assert prepare(options, tmp_path, **named, identity=with_tokenizer).tokenizer.vocab_size == 6
    copy.write_bytes(content * 2)
    with pytest.raises(DataError, match=r"a.tfrecord or its vocabulary has changed"):
        prepare(options, tmp_path, corpus=str(copy), **changes, identity=first)
    with pytest.raises(DataError, match=r"has changed"):
        prepare(options, tmp_path, corpus=str(copy), **changes, validation_fraction=0.3, identity=first)


@needs_samples
@pytest.mark.parametrize("source", ["sample_text.tfrecord", "sample_*.tfrecord", "folder"])
def test_tfrecords(options: PretrainingDataOptions, tmp_path: Path, source: str) -> None:
    path = SAMPLES / source
    if source == "folder":
        path = tmp_path / "records"
        path.mkdir()
        (path / "a.tfrecord").write_bytes((SAMPLES / "sample_text.tfrecord").read_bytes())
    changes = {"corpus": str(path), "sequence_length": 128, "mask_tokens": 20, "vocab_size": 30522}
    data = prepare(options, tmp_path, **changes)
    assert data.tokenizer is None and data.statistics.vocabulary is None
    assert any("no tokeniser" in note for note in data.statistics.notes)
    assert data.statistics.train.examples + data.statistics.validation.examples == 45
    with pytest.raises(DataError, match="sequence_length is 64"):
        prepare(options, tmp_path, corpus=str(path))
    with pytest.raises(DataError, match="validation_corpus"):
        prepare(options, tmp_path, **changes, validation_corpus=options.corpus)


@pytest.mark.skipif(not WIKITEXT.exists(), reason=f"{WIKITEXT} is missing")
def test_wikitext(options: PretrainingDataOptions, tmp_path: Path) -> None:
    data = prepare(options, tmp_path, corpus=str(WIKITEXT), vocab_size=4000, validation_fraction=0.05)
    counts = data.statistics.train
    assert counts.examples > 4000
    # Its 60 articles come as paragraphs and headings of one line, so that many segments have no continuation.
    assert 0.5 < counts.random_next / counts.examples < 0.75
    lengths = collate(data.train.__getitems__(range(1000)))[1].sum(dim=1)
    assert lengths.float().mean() > 40
