"""The cache of encoded words gives the tokeniser's ids for any text, and its memory is bounded."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from data.word_cache import WordCache

LETTERS = string.ascii_lowercase
# Blanks of all kinds, marks that combine, case, Chinese, control and private characters, emoji with joiners.
CHARACTERS = (
    "  \t\n\u00a0\u2003\u3000abcABC.,'-()[]#ÉéßΣσςİıﬁ\u0301\u0300\u0308"
    "中文\u200d👩🚀\x00\x7f\ufffd\u00ad\ue000"
)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_any_text_has_the_ids_that_it_has_without_the_cache(lowercase, strip_accents):
    singles = [*LETTERS, *"ABCÉéσςß中文.,'()[]"]
    pieces = ["ab", "ca", "cab", "##ab", *(f"##{single}" for single in singles)]
    tokenizer = Tokenizer(
        [*SPECIAL_TOKENS, *singles, *pieces], lowercase=lowercase, strip_accents=strip_accents
    )
    draw = random.Random(1)
    lines = ["".join(draw.choices(CHARACTERS, k=draw.randrange(60))) for _ in range(400)]
    lines += ["", " ", "  a  ", "a" * 101, "a" * 100 + " " + "b" * 300, "[MASK] [CLS]ab"]
    for _ in range(2):  # the second time from the cache
        for line, ids in zip(lines, tokenizer.encode_lines(lines)):
            assert ids.dtype == np.int32
            assert ids.tolist() == tokenizer.encode_with_offsets(line)[0].tolist(), repr(line)


def test_each_part_is_encoded_once_and_arrays_are_the_callers():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return [[len(text)] for text in texts]

    cache = WordCache(encode)
    first = cache.encode_lines(["a bb", "bb a a"])
    first[0][:] = 9
    assert [ids.tolist() for ids in cache.encode_lines(["bb  ccc", "a"])] == [[2, 0, 3], [1]]
    assert asked == ["a", "bb", "", "ccc"]


def test_a_full_cache_is_emptied():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return [[len(text)] for text in texts]

    cache = WordCache(encode)
    long = ["x" * ((1 << 21) + n) for n in range(6)]
    for text in [*long, long[0]]:
        assert cache.encode_lines([f"{text} y"])[0].tolist() == [len(text), 1]
    assert asked.count(long[0]) == 2 and asked.count("y") == 2
