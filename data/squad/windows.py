"""Questions and their contexts as BERT's inputs: [CLS] question [SEP] part of the context [SEP] [PAD]...

A context longer than a sequence is cut into overlapping windows. Letters: S is `max_seq_length`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Iterator, List, Tuple

import numpy as np

from data.errors import DataError
from data.squad.files import Question, QuestionSet
from data.tokenizer import Tokenizer

CLS_POSITION = 0
SPECIAL_TOKENS_PER_WINDOW = 3


@dataclass(frozen=True)
class WindowOptions:
    """Lengths in tokens. `doc_stride` lies between the starts of two windows on one context, as in BERT
    (the `stride` of Hugging Face's tokenisers is their overlap). A longer question is cut to
    `max_query_length`."""

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64

    def __post_init__(self) -> None:
        for name in ("max_seq_length", "doc_stride", "max_query_length"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}: it must be 1 or more.")
        room = self.max_seq_length - SPECIAL_TOKENS_PER_WINDOW - self.max_query_length
        if room < 1:
            raise DataError(
                f"max_seq_length {self.max_seq_length} leaves no room for the context beside "
                f"{SPECIAL_TOKENS_PER_WINDOW} special tokens and a question of max_query_length "
                f"{self.max_query_length}: raise the former by {1 - room}, or lower the latter."
            )


@dataclass(frozen=True)
class Window:
    """One sequence of a question.

    `question` is the question's index in its set. input_ids, attention_mask and token_type_ids are int32
    [S]. offsets, int32 [S, 2], are each context token's first character and the one after its last in
    the context, -1 elsewhere. is_max_context, bool [S], marks the context tokens that no other window of
    the question shows with more context around them. start_position and end_position are the first
    answer's first and last token; both are [CLS]'s where the window doesn't show all of the answer.
    """

    question: int
    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    offsets: np.ndarray
    is_max_context: np.ndarray
    start_position: int
    end_position: int


def make_windows(data: QuestionSet, tokenizer: Tokenizer, options: WindowOptions) -> Iterator[Window]:
    """Yields the windows of every question, in the questions' order, at least one for each.

    Raises DataError for a context without a token.
    """
    # One paragraph's questions follow each other: its context is encoded once.
    for context, group in groupby(enumerate(data.questions), key=lambda indexed: indexed[1].context):
        indexed = list(group)
        context_ids, offsets = tokenizer.encode_with_offsets(context)
        if not len(context_ids):
            raise DataError(
                f"the context of question {indexed[0][1].id!r} ({context[:40]!r}) has no token: "
                "there is nothing to find an answer in. Give it a text."
            )
        queries = tokenizer.encode_lines([question.question for _, question in indexed])
        for (index, question), query in zip(indexed, queries):
            answer = answer_tokens(question, offsets)
            query = query[: options.max_query_length]
            spans = context_spans(len(context_ids), len(query), options)
            owners = max_context_owners(len(context_ids), spans)
            for number, (start, end) in enumerate(spans):
                ids = [tokenizer.cls_id, *query, tokenizer.sep_id, *context_ids[start:end], tokenizer.sep_id]
                yield _window(
                    index,
                    np.array(ids, dtype=np.int32),
                    offsets[start:end],
                    owners[start:end] == number,
                    _shown(answer, start, end),
                    tokenizer.pad_id,
                    options.max_seq_length,
                )


def answer_tokens(question: Question, offsets: np.ndarray) -> Tuple[int, int]:
    """The first answer's first and last token in the context; (-1, -1) where there is none.

    They are the tokens that overlap the answer's characters, so that they cover it up to token boundaries.
    """
    if not question.answers or question.answers[0].start is None:
        return -1, -1
    answer = question.answers[0]
    assert answer.start is not None
    overlaps = (offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.start + len(answer.text))
    tokens = np.flatnonzero(overlaps)
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (-1, -1)


def context_spans(context_tokens: int, query_tokens: int, options: WindowOptions) -> List[Tuple[int, int]]:
    """The context's tokens in each window, as (first, one after last); together they cover all."""
    room = options.max_seq_length - SPECIAL_TOKENS_PER_WINDOW - query_tokens
    step = min(options.doc_stride, room)  # a longer one would leave tokens out
    spans = [(0, min(room, context_tokens))]
    while spans[-1][1] < context_tokens:
        start = spans[-1][0] + step
        spans.append((start, min(start + room, context_tokens)))
    return spans


def max_context_owners(context_tokens: int, spans: List[Tuple[int, int]]) -> np.ndarray:
    """int [context_tokens]: the number of the span that shows each token best.

    That is BERT's rule: the smaller of the tokens to its left and right counts, and 0.01 for each token of
    the span decides ties; then the first span.
    """
    best = np.full(context_tokens, -1.0)
    owners = np.zeros(context_tokens, dtype=np.int64)
    for number, (start, end) in enumerate(spans):
        place = np.arange(end - start)
        score = np.minimum(place, place[::-1]) + 0.01 * (end - start)
        better = score > best[start:end]
        best[start:end][better] = score[better]
        owners[start:end][better] = number
    return owners


def _shown(answer: Tuple[int, int], start: int, end: int) -> Tuple[int, int]:
    """The answer's tokens counted from `start`; (-1, -1) unless all of it is shown."""
    first, last = answer
    return (first - start, last - start) if start <= first and last < end else (-1, -1)


def _window(
    index: int,
    ids: np.ndarray,
    offsets: np.ndarray,
    is_max_context: np.ndarray,
    answer: Tuple[int, int],
    pad_id: int,
    length: int,
) -> Window:
    stop = len(ids) - 1  # the last [SEP]
    first = stop - len(offsets)
    input_ids = np.full(length, pad_id, dtype=np.int32)
    input_ids[: len(ids)] = ids
    every_offset = np.full((length, 2), -1, dtype=np.int32)
    every_offset[first:stop] = offsets
    every_is_max_context = np.zeros(length, dtype=bool)
    every_is_max_context[first:stop] = is_max_context
    positions = np.arange(length)
    return Window(
        index,
        input_ids,
        (positions < len(ids)).astype(np.int32),
        ((positions >= first) & (positions <= stop)).astype(np.int32),
        every_offset,
        every_is_max_context,
        CLS_POSITION if answer[0] < 0 else first + answer[0],
        CLS_POSITION if answer[1] < 0 else first + answer[1],
    )
