"""Sentences: where a paragraph splits into them, and which of them are English prose."""

from __future__ import annotations

import re
from typing import List

# A stop, with a closing quote or bracket, before a blank and what a sentence begins with.
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Dr|Mr|Mrs|St|al|Fig|Eq|Sec|No|resp|approx|incl)|\b[A-Z])\.$"
)
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
_COMMON_WORDS = frozenset(
    (
        "the a an is are was were be been to of and or in for from with by on at as it its this that these "
        "those if when not no can may will should must has have does do you your we which than then there "
        "all any each"
    ).split()
)
_SYMBOL = re.compile(r"[=<>{}\[\]|\\/^~@#$%&*+_]")
_CODE = re.compile(r"[\w\])]\((?!\))|\w\.\w+\.\w|\w_\w+_\w|\.\.\.|--")


def split_sentences(paragraph: str) -> List[str]:
    """Splits at sentence ends, but not behind common abbreviations and initials."""
    sentences: List[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : end.end()].strip()
        if not _ABBREVIATION.search(sentence):
            sentences.append(sentence)
            start = end.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


def is_prose(sentence: str) -> bool:
    """Whether it reads as an English sentence: whole, mostly words, a common one among them."""
    if not sentence.lstrip("\"'(")[:1].isupper() or not sentence.rstrip("\"')]").endswith((".", "!", "?")):
        return False
    words = _WORD.findall(sentence)
    if not 4 <= len(words) <= 80 or all(word.lower() not in _COMMON_WORDS for word in words):
        return False
    letters = sum(map(len, words))
    if letters < 0.72 * len(sentence) or letters > 9 * len(words):
        return False
    symbols = len(_SYMBOL.findall(sentence)) + 2 * len(_CODE.findall(sentence))
    foreign = 0 if sentence.isascii() else sum(not character.isascii() for character in sentence)
    return symbols <= len(words) // 5 and foreign <= 2
