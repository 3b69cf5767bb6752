"""Sentences lose no text; pairs: legal segments A and B, and how often B is random."""

from __future__ import annotations

import random
from typing import List

import pytest

from data.pairs import Pair, build_pairs, split_long_sentences, split_sentences

MAX_TOKENS = 61


def make_documents(seed: int, count: int, most_sentences: int = 30) -> List[List[int]]:
    rng = random.Random(seed)
    return [[rng.randint(1, 40) for _ in range(rng.randint(2, most_sentences))] for _ in range(count)]


def build(
    documents: List[List[int]], seed: int = 0, short: float = 0.1, max_tokens: int = MAX_TOKENS
) -> List[Pair]:
    return build_pairs(
        documents, max_tokens=max_tokens, short_sequence_probability=short, rng=random.Random(seed)
    )


def owner(documents: List[List[int]], token: int) -> int:
    for number, document in enumerate(documents):
        if token < sum(document):
            return number
        token -= sum(document)
    raise AssertionError("no such token")


def test_pairs_fit_and_are_never_empty() -> None:
    documents = make_documents(1, 40)
    for short in (0.0, 0.1, 1.0):
        for pair in build(documents, short=short):
            length_a, length_b = pair.a_end - pair.a_start, pair.b_end - pair.b_start
            assert length_a >= 1 and length_b >= 1 and length_a + length_b <= MAX_TOKENS


def test_segments_stay_within_a_document_and_random_means_another() -> None:
    documents = make_documents(2, 40)
    for pair in build(documents):
        own = owner(documents, pair.a_start)
        assert owner(documents, pair.a_end - 1) == own
        other = owner(documents, pair.b_start)
        assert owner(documents, pair.b_end - 1) == other
        assert (other != own) == pair.is_random_next


def test_a_continuation_follows_its_segment() -> None:
    """B begins where A ends, unless truncation leaves a gap between them."""
    documents = make_documents(3, 40)
    continuations = [
        pair for pair in build(documents, max_tokens=10_000, short=0.0) if not pair.is_random_next
    ]
    assert continuations
    assert all(pair.a_end == pair.b_start for pair in continuations)
    assert all(pair.a_end <= pair.b_start for pair in build(documents) if not pair.is_random_next)


def test_half_of_the_next_segments_are_random() -> None:
    pairs = build(make_documents(4, 400, most_sentences=60))
    share = sum(pair.is_random_next for pair in pairs) / len(pairs)
    # Lone last sentences, whose B must be random, lift it above a half.
    assert len(pairs) > 4000 and 0.48 < share < 0.60


def test_a_lone_sentence_has_a_random_next() -> None:
    pairs = build([[5], [6], [7]], short=0.0)
    assert len(pairs) == 3 and all(pair.is_random_next for pair in pairs)


@pytest.mark.parametrize("document", [[5], [5, 6], [5] * 100, [60, 60, 60]])
def test_a_single_document_is_never_its_own_random_next(document: List[int]) -> None:
    for seed in range(20):
        pairs = build([document], seed=seed)
        assert not any(pair.is_random_next for pair in pairs)
        assert bool(pairs) == (len(document) > 1)


def test_sentences_that_a_random_next_replaces_are_used_again() -> None:
    """Without truncation and short targets, the A segments and true B segments cover the whole document."""
    documents = make_documents(5, 30)
    covered = set()
    for pair in build(documents, max_tokens=10_000, short=0.0):
        covered.update(range(pair.a_start, pair.a_end))
        if not pair.is_random_next:
            covered.update(range(pair.b_start, pair.b_end))
    assert covered == set(range(sum(map(sum, documents))))


def test_sequences_are_filled_but_for_the_short_ones() -> None:
    documents = [[7] * 2000, [9] * 2000]
    lengths = [p.a_end - p.a_start + p.b_end - p.b_start for p in build(documents, short=0.1)]
    full = sum(length == MAX_TOKENS for length in lengths) / len(lengths)
    assert 0.85 < full < 0.95
    assert min(lengths) < 15


def test_both_ends_are_truncated() -> None:
    """Sentences have 100 tokens: a segment that doesn't begin at a multiple of 100 was cut at the front."""
    documents = [[100] * 50, [100] * 50]
    pairs = build(documents, max_tokens=150, short=0.0)
    cut_front = [pair.a_start % 100 != 0 for pair in pairs]
    cut_back = [pair.a_end % 100 != 0 for pair in pairs]
    assert any(cut_front) and any(cut_back)


def test_the_same_seed_gives_the_same_pairs() -> None:
    documents = make_documents(6, 20)
    assert build(documents, seed=1) == build(documents, seed=1) != build(documents, seed=2)


def test_long_sentences_are_cut_not_lost() -> None:
    assert split_long_sentences([3, 10, 25, 0, 1], 10) == [3, 10, 10, 10, 5, 1]


def test_no_documents_no_pairs() -> None:
    assert build([]) == [] and build([[], []]) == []


LONG = "This clause exists in order to make the line a long one, " * 4


def test_short_lines_are_sentences() -> None:
    assert split_sentences("One. Two.\n  Three?  \n\nFour") == ["One. Two.", "Three?", "Four"]


@pytest.mark.parametrize(
    "tail, sentences",
    [
        ("it ends. Another begins! A third?", ["it ends.", "Another begins!", "A third?"]),
        ('he said "it ends." Then he left.', ['he said "it ends."', "Then he left."]),
        ("as Mr. Brown and Mrs. Gray said.", ["as Mr. Brown and Mrs. Gray said."]),
        ("as J. R. Smith said.", ["as J. R. Smith said."]),
        ("version 3.8 of e.g. Python, cf. PEP 8.", ["version 3.8 of e.g. Python, cf. PEP 8."]),
        ("it ends. and goes on.", ["it ends. and goes on."]),
        ("it ends. 12 of them came.", ["it ends.", "12 of them came."]),
        ("終わる。始まる。", ["終わる。", "始まる。"]),
    ],
)
def test_long_lines_are_cut_at_sentence_ends(tail: str, sentences: List[str]) -> None:
    expected = [(LONG + sentences[0]), *sentences[1:]]
    assert split_sentences(LONG + tail) == expected


def test_no_text_is_lost(documents: List[str]) -> None:
    for document in documents:
        joined = " ".join(document.split("\n"))
        sentences = split_sentences(joined)
        assert "".join("".join(sentences).split()) == "".join(document.split())
        assert all(sentence == sentence.strip() != "" for sentence in sentences)


def test_prose_is_cut_often(documents: List[str]) -> None:
    text = " ".join(" ".join(documents).split())
    lengths = [len(sentence) for sentence in split_sentences(text)]
    assert 60 < sum(lengths) / len(lengths) < 250
