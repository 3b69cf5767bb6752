"""From options to data, end to end on real text: what is held out, what is cached, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
import torch

from data import (
    DataError,
    PretrainingDataOptions,
    Tokenizer,
    collate,
    prepare_pretraining_data,
    unigram_entropy,
)
from data.corpora import Corpus
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


def prepare(options: PretrainingDataOptions, cache: Path, **changes: object):  # type: ignore[no-untyped-def]
    changed = dataclasses.replace(options, **changes)  # type: ignore[arg-type]
    return prepare_pretraining_data(changed, cache_folder=cache, progress=False)


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
    """Another seed and sequence length, as in a second phase: the same documents, so as many tokens."""
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
        ({"sequence_length": 7}, "sequence_length 7"),
        ({"mask_tokens": 0}, "mask_tokens 0"),
        ({"mask_tokens": 65}, "mask_tokens 65"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"masked_lm_probability": 1.5}, "masked_lm_probability"),
        ({"preprocessing_workers": -1}, "preprocessing_workers"),
    ],
)
def test_impossible_options_are_refused(
    options: PretrainingDataOptions, changes: Dict[str, float], message: str
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
