"""Sentences are lines; only long lines are cut, at sentence ends, and no text is lost."""

from __future__ import annotations

from typing import List

import pytest

from data.pairs import split_sentences

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
