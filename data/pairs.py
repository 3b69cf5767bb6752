"""Sentences, and pairs of them for next sentence prediction (BERT: Devlin et al. 2019, section 3.1 and
appendix A.2).

Legend: the tokens of all documents of a chunk are concatenated in one flat array. A sentence is a range of
it, a document a range of sentences, and so are segments A and B of an example, because both consist of
consecutive sentences. So nothing is copied until the shard is written.
"""

from __future__ import annotations

import random
import re
from typing import List, NamedTuple, Sequence, Tuple


class Pair(NamedTuple):
    """Token ranges [a_start, a_end) and [b_start, b_end) of the flat array."""

    a_start: int
    a_end: int
    b_start: int
    b_end: int
    is_random_next: bool


def split_long_sentences(document: Sequence[int], max_tokens: int) -> List[int]:
    """Sentence lengths (tokens); longer ones are split at max_tokens, so that no text is lost."""
    lengths: List[int] = []
    for length in document:
        while length > max_tokens:
            lengths.append(max_tokens)
            length -= max_tokens
        if length:
            lengths.append(length)
    return lengths


def build_pairs(
    documents: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    short_sequence_probability: float,
    rng: random.Random,
) -> List[Pair]:
    """Pairs of segments with at least one token each and at most max_tokens together.

    documents: the sentence lengths (tokens, > 0) of each document, in the order of their tokens.
    max_tokens: the sequence length minus its three special tokens.
    Sentences of a document are collected up to a target length: max_tokens, or with the given probability a
    random shorter one, so that the model sees padding. They are split at a random sentence into A and B. Half
    of the time B comes from another document instead, and the sentences that it replaces are used again. The
    B of a single last sentence is always random. Without another document B is never random, and a single
    sentence gives no example. Only rng.random() is used, which Python guarantees to be the same in all
    versions.
    """
    # bounds[d][i]: start of sentence i of document d; the last entry is the end of the document
    bounds: List[List[int]] = []
    start = 0
    for lengths in documents:
        edges = [start]
        for length in lengths:
            edges.append(edges[-1] + length)
        start = edges[-1]
        if len(edges) > 1:
            bounds.append(edges)

    pairs: List[Pair] = []
    for d, edges in enumerate(bounds):
        num_sentences = len(edges) - 1
        first = 0
        while first < num_sentences:
            target = max_tokens
            if rng.random() < short_sequence_probability:
                target = _draw_between(rng, 2, max_tokens)
            last = first + 1
            while last < num_sentences and (edges[last] - edges[first] < target or last == first + 1):
                last += 1
            alone = last == first + 1
            has_others = len(bounds) > 1
            if alone and not has_others:
                break
            cut = last if alone else _draw_between(rng, first + 1, last - 1)
            if alone or (has_others and rng.random() < 0.5):
                b_start, b_end = _random_segment(bounds, d, target - (edges[cut] - edges[first]), rng)
                pairs.append(_truncate(edges[first], edges[cut], b_start, b_end, True, target, rng))
                first = cut
            else:
                pairs.append(_truncate(edges[first], edges[cut], edges[cut], edges[last], False, target, rng))
                first = last
    return pairs


def _draw_between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _random_segment(bounds: List[List[int]], own: int, wanted: int, rng: random.Random) -> Tuple[int, int]:
    """Consecutive sentences of another document, from a random one, until there are enough tokens."""
    other = _draw_between(rng, 0, len(bounds) - 2)
    edges = bounds[other + (other >= own)]
    first = _draw_between(rng, 0, len(edges) - 2)
    last = first + 1
    while last < len(edges) - 1 and edges[last] - edges[first] < wanted:
        last += 1
    return edges[first], edges[last]


def _truncate(
    a_start: int, a_end: int, b_start: int, b_end: int, is_random: bool, max_tokens: int, rng: random.Random
) -> Pair:
    """Removes tokens of the longer segment, from its front or back at random, until both fit."""
    while (a_end - a_start) + (b_end - b_start) > max_tokens:
        from_front = rng.random() < 0.5
        if a_end - a_start > b_end - b_start:
            a_start, a_end = (a_start + 1, a_end) if from_front else (a_start, a_end - 1)
        else:
            b_start, b_end = (b_start + 1, b_end) if from_front else (b_start, b_end - 1)
    return Pair(a_start, a_end, b_start, b_end, is_random)


# A line up to this long counts as one sentence, so text with one sentence per line is unchanged.
_LONG_LINE_CHARACTERS = 200

# A sentence ends at . ! or ? (and closing quotes or brackets) before whitespace and a possible sentence
# start, but not after an initial (J. Smith) nor after a few titles and abbreviations that are followed by a
# capital. Chinese and Japanese full stops need no whitespace.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|No|Lt|cf|vs)\.)(?<!\b(?:Mrs|Rev|Gen|Col|e\.g|i\.e)\.)
        (?P<close>["'”’)\]]*)\s+(?=["'“‘(\[]*[A-Z0-9])
      | (?<=[。！？])""",
    re.VERBOSE,
)


def split_sentences(document: str) -> List[str]:
    """A document's non-empty sentences in order, stripped: its lines, long ones split at sentence ends."""
    sentences: List[str] = []
    for line in document.split("\n"):
        line = line.strip()
        if len(line) <= _LONG_LINE_CHARACTERS:
            if line:
                sentences.append(line)
        else:
            sentences.extend(_split_line(line))
    return sentences


def _split_line(line: str) -> List[str]:
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(line):
        # Closing quotes belong to the sentence that they end.
        end = match.end("close") if match.group("close") else match.start()
        if end > start:
            sentences.append(line[start:end].strip())
        start = match.end()
    sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]
