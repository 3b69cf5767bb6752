"""Questions and their contexts as BERT's inputs: [CLS] question [SEP] part of the context [SEP] [PAD]...

A context longer than a sequence is split into overlapping windows, made once and cached as arrays.
Letters: N windows, S tokens of a sequence.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from tqdm import tqdm

from ..arrays import kept_arrays
from ..batches import Batch, SampleDataset
from ..files import DataError
from ..masking import IGNORED_LABEL
from ..tokenizer import Tokenizer
from .files import Question, QuestionSet

CLS_POSITION = 0
SPECIAL_TOKENS_PER_WINDOW = 3


@dataclass(frozen=True)
class WindowOptions:
    """Lengths in tokens. `doc_stride` is the distance between the starts of two windows on one context, as in
    BERT (the `stride` of Hugging Face's tokenisers is their overlap). Longer questions are truncated to
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
    [S]. offsets, int32 [S, 2], are the character ranges (end exclusive) of context tokens, -1 elsewhere.
    is_max_context, bool [S], marks the context tokens that have the most context in this window of the
    question. start_position and end_position are the first answer's first and last token; both are [CLS]'s if
    the answer isn't completely in the window.
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
    # Questions on a paragraph are consecutive: its context is encoded once.
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
    """The first answer's first and last token in the context; (-1, -1) if there is none.

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
    """The range of context tokens in each window, (start, end); together they cover all tokens."""
    room = options.max_seq_length - SPECIAL_TOKENS_PER_WINDOW - query_tokens
    step = min(options.doc_stride, room)  # a longer stride would leave tokens out
    spans = [(0, min(room, context_tokens))]
    while spans[-1][1] < context_tokens:
        start = spans[-1][0] + step
        spans.append((start, min(start + room, context_tokens)))
    return spans


def max_context_owners(context_tokens: int, spans: List[Tuple[int, int]]) -> np.ndarray:
    """int [context_tokens]: for each token, the number of the span in which it has the most context.

    BERT's rule: the smaller of the numbers of tokens to its left and right, plus 0.01 per token of the span;
    ties go to the first span.
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
    """The answer's tokens relative to `start`; (-1, -1) unless the window contains all of it."""
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


# The cache of windows is cache_folder/squad/IDENTITY, see ..arrays.

FORMAT_VERSION = 1
WINDOWS_IN_A_CHUNK = 1024  # windows held as Python objects at a time


@dataclass(frozen=True)
class Features:
    """Windows in the order of their questions, as parallel arrays.

    input_ids [N, S]; tokens [N], the number of tokens without padding; context_start [N], the first token of
    the context; question [N], the question's index in its set; start_position, end_position [N]; offsets
    [N, S, 2] and is_max_context [N, S]: see Window. All are integers except the last.
    """

    identity: str
    pad_id: int
    input_ids: np.ndarray
    tokens: np.ndarray
    context_start: np.ndarray
    question: np.ndarray
    start_position: np.ndarray
    end_position: np.ndarray
    offsets: np.ndarray
    is_max_context: np.ndarray

    def __len__(self) -> int:
        return len(self.question)

    @property
    def sequence_length(self) -> int:
        return int(self.input_ids.shape[1])


ARRAYS = tuple(name for name in Features.__dataclass_fields__ if name not in ("identity", "pad_id"))


def prepare_features(
    data: QuestionSet,
    tokenizer: Tokenizer,
    options: WindowOptions,
    *,
    cache_folder: Path,
    progress: bool = False,
) -> Features:
    """The windows of `data`, from the cache if possible; waits for another process that is making them.

    Raises DataError for a context without tokens and if the cache folder can't be used.
    """
    identity = _identity(data, tokenizer, options)
    arrays = kept_arrays(
        cache_folder / "squad" / identity,
        ARRAYS,
        lambda: _arrays(data, tokenizer, options, progress),
        lambda found: _problem(found, len(data.questions), tokenizer.vocab_size, options.max_seq_length),
        cache_folder=cache_folder,
    )
    return Features(identity, tokenizer.pad_id, **arrays)


def _identity(data: QuestionSet, tokenizer: Tokenizer, options: WindowOptions) -> str:
    """Equal if questions, vocabulary and lengths are equal, independent of the file's name."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([FORMAT_VERSION, tokenizer.fingerprint(), asdict(options)]).encode())
    for question in data.questions:
        answers = [(answer.text, answer.start) for answer in question.answers]
        digest.update(json.dumps([question.id, question.question, question.context, answers]).encode())
    return "squad-" + digest.hexdigest()


def _arrays(
    data: QuestionSet, tokenizer: Tokenizer, options: WindowOptions, progress: bool
) -> Dict[str, np.ndarray]:
    chunks: List[Dict[str, np.ndarray]] = []
    held: List[Window] = []
    with tqdm(
        total=len(data.questions),
        desc=f"windows of {data.name}",
        unit=" questions",
        disable=not progress,
        leave=False,
    ) as bar:
        for window in make_windows(data, tokenizer, options):
            bar.update(window.question - bar.n)
            held.append(window)
            if len(held) == WINDOWS_IN_A_CHUNK:
                chunks.append(_columns(held, tokenizer.vocab_size))
                held = []
    if held:
        chunks.append(_columns(held, tokenizer.vocab_size))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in ARRAYS}


def _columns(windows: List[Window], vocab_size: int) -> Dict[str, np.ndarray]:
    token_type = np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32

    def stacked(name: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(window, name)) for window in windows])

    return {
        "input_ids": stacked("input_ids").astype(token_type),
        "tokens": np.array([window.attention_mask.sum() for window in windows], dtype=np.int32),
        "context_start": np.array([window.token_type_ids.argmax() for window in windows], dtype=np.int32),
        **{
            name: stacked(name).astype(np.int32)
            for name in ("question", "start_position", "end_position", "offsets")
        },
        "is_max_context": stacked("is_max_context"),
    }


def _problem(arrays: Dict[str, np.ndarray], questions: int, vocab_size: int, length: int) -> Optional[str]:
    """The first thing that is wrong with arrays whose checksums are right, or None."""
    count = arrays["question"].size
    shapes: Dict[str, Tuple[int, ...]] = dict.fromkeys(ARRAYS, (count,))
    shapes.update(input_ids=(count, length), is_max_context=(count, length), offsets=(count, length, 2))
    for name, array in arrays.items():
        kinds = "b" if name == "is_max_context" else "iu"
        if array.shape != shapes[name] or array.dtype.kind not in kinds:
            return f"{name} has shape {array.shape} and type {array.dtype}"
    limits = {
        "input_ids": (0, vocab_size - 1),
        "tokens": (1, length),
        "context_start": (0, length - 1),
        "question": (0, questions - 1),
        "start_position": (0, length - 1),
        "end_position": (0, length - 1),
        "offsets": (-1, np.iinfo(np.int32).max),
    }
    for name, (least, most) in limits.items():
        array = arrays[name]
        if array.size and not (least <= int(array.min()) and int(array.max()) <= most):
            return f"{name} has values from {array.min()} to {array.max()}, outside of {least} to {most}"
    if set(range(questions)) != set(np.unique(arrays["question"]).tolist()):
        return "a question has no window"
    if (np.diff(arrays["question"].astype(np.int64)) < 0).any():
        return "the windows aren't in the order of their questions"
    if (arrays["offsets"][:, :, 0] > arrays["offsets"][:, :, 1]).any():
        return "a token ends before it starts"
    if (arrays["start_position"] > arrays["end_position"]).any():
        return "an answer ends before it starts"
    return None


class SquadDataset(SampleDataset):
    """int32 batches of input_ids, attention_mask, token_type_ids [B, S], start and end positions [B].

    A position is -100 in a padding row, and [CLS]'s if the answer isn't in the window.
    """

    def __init__(self, features: Features, *, seed: int, shuffle: bool) -> None:
        super().__init__(len(features), seed=seed, shuffle=shuffle)
        self.sequence_length = features.sequence_length
        self.pad_id = features.pad_id
        self._features = features

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        features = self._features
        columns = np.arange(self.sequence_length)
        attention_mask = columns < features.tokens[indices][:, None]
        token_type_ids = attention_mask & (columns >= features.context_start[indices][:, None])
        return _int32(
            features.input_ids[indices],
            attention_mask,
            token_type_ids,
            features.start_position[indices],
            features.end_position[indices],
        )

    def padding(self, rows: int) -> Batch:
        shape = (rows, self.sequence_length)
        attention_mask = np.zeros(shape)
        attention_mask[:, 0] = 1
        nowhere = np.full(rows, IGNORED_LABEL)
        return _int32(np.full(shape, self.pad_id), attention_mask, np.zeros(shape), nowhere, nowhere)


def _int32(*fields: np.ndarray) -> Batch:
    return tuple(torch.from_numpy(np.ascontiguousarray(field, dtype=np.int32)) for field in fields)
