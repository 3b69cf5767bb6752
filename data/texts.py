"""Texts for inference: from arguments, lines of a file or standard input, JSON lines; and their encoding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .files import DataError, open_plain
from .tokenizer import Tokenizer

MASK = "[MASK]"
# Sequence lengths that are tried in turn: a program has one, and short ones are faster.
LENGTHS = (16, 32, 64, 128, 256, 384, 512)
_FIRST = ("text", "sentence", "sentence1", "premise", "question", "question1")
_SECOND = ("context", "text_pair", "sentence2", "hypothesis", "question2", "text2")


@dataclass(frozen=True)
class Text:
    """One text, or two (a pair; a question and its context)."""

    parts: Tuple[str, ...]
    id: Optional[str] = None


def text_of(line: str, place: str, *, context: Optional[str] = None) -> Text:
    """A line as a text: a JSON object with `text` (and `text_pair`), or `question` and `context`; otherwise
    the line itself, of which a tab separates the parts of a pair.

    `context` is the second part of lines that have none. Raises DataError.
    """
    parts: Tuple[str, ...] = tuple(line.split("\t"))
    id_ = None
    if line.lstrip().startswith("{") and line.rstrip().endswith("}"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            first = next((row[key] for key in _FIRST if key in row), None)
            second = next((row[key] for key in _SECOND if key in row), None)
            if not isinstance(first, str) or not isinstance(second, (str, type(None))):
                raise DataError(
                    f"{place} is an object with the keys {', '.join(map(repr, row))}: it needs 'text', or "
                    "'text' and 'text_pair', or 'question' and 'context', each a text"
                )
            parts = (first,) if second is None else (first, second)
            id_ = None if row.get("id") is None else str(row["id"])
    if len(parts) == 1 and context is not None:
        parts = (parts[0], context)
    if len(parts) > 2:
        raise DataError(f"{place} has {len(parts)} parts, separated by tabs: a model reads one text or two")
    if not all(part.strip() for part in parts):
        raise DataError(f"{place} has an empty text: remove the line, or give its text")
    try:
        "".join(parts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place} isn't valid text (character {error.start}): correct it") from error
    return Text(parts, id_)


def texts_of_lines(lines: Iterable[str], name: str, *, context: Optional[str] = None) -> Iterator[Text]:
    """A text for each line that isn't blank. Raises DataError with the line's number."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield text_of(line.rstrip("\r\n"), f"{name} line {number}", context=context)


def lines_of_file(file: Path) -> List[str]:
    """The lines of a UTF-8 file. Raises DataError."""
    try:
        with open_plain(file) as stream:
            return stream.read().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"cannot read {str(file)!r}: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8 text (byte {error.start}): convert it") from error


@dataclass(frozen=True)
class EncodedTexts:
    """int32 arrays: input_ids, attention_mask, token_type_ids [N, S], and mask_positions [N, M], 0 where a
    text has fewer than M masks; masks [N] counts them. truncated, bool [N]: tokens were cut off."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    mask_positions: np.ndarray
    masks: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def sequence_length(self) -> int:
        return int(self.input_ids.shape[1])


def encode(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    *,
    most_tokens: int,
    length: Optional[int],
    masks: bool = False,
) -> EncodedTexts:
    """[CLS] text [SEP], or [CLS] text [SEP] second text [SEP]. `masks`: "[MASK]" in a text is the mask token.

    The sequence length is `length`, or the least of LENGTHS that holds all texts, up to `most_tokens`. A
    longer text loses tokens at its end, of a pair the second one. Raises DataError for a length without room
    for a token of a text, and for a text that has no mask or loses one.
    """
    rows = [_tokens(text, tokenizer, masks) for text in texts]
    longest = max(map(_size, rows))
    if length is None:
        length = next((size for size in LENGTHS if size >= longest and size <= most_tokens), most_tokens)
    special = 1 + max(map(len, rows))
    if length <= special:
        raise DataError(
            f"a sequence of {length} tokens has no room for a text: [CLS] and [SEP] take {special}; "
            f"use at least {special + 1} (--sequence-length)"
        )
    ids = np.full((len(rows), length), tokenizer.pad_id, dtype=np.int32)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    truncated = np.array([_size(row) > length for row in rows])
    places: List[List[int]] = []
    for number, (row, text) in enumerate(zip(rows, texts)):
        line, second = _line(row, length, tokenizer)
        ids[number, : len(line)] = line
        mask[number, : len(line)] = 1
        types[number, second : len(line)] = 1
        places.append(
            [place for place, token in enumerate(line) if token == tokenizer.mask_id] if masks else []
        )
        wanted = sum(part.count(MASK) for part in text.parts) if masks else 0
        if masks and (not wanted or len(places[-1]) < wanted):
            what = "has no [MASK]: write [MASK] for the word to fill"
            if wanted:
                what = f"loses a [MASK] when cut to {length} tokens: leave out words before the [MASK]"
            raise DataError(f"text {number + 1}, {text.parts[0][:60]!r}, {what}")
    counts = np.array([len(one) for one in places], dtype=np.int32)
    positions = np.zeros((len(rows), max(1, int(counts.max()))), dtype=np.int32)
    for number, one in enumerate(places):
        positions[number, : len(one)] = one
    return EncodedTexts(ids, mask, types, positions, counts, truncated)


def _tokens(text: Text, tokenizer: Tokenizer, masks: bool) -> List[List[int]]:
    parts = []
    for part in text.parts:
        pieces = part.split(MASK) if masks else [part]
        encoded = [piece.tolist() for piece in tokenizer.encode_lines(pieces)]
        tokens = encoded[0]
        for piece in encoded[1:]:
            tokens = [*tokens, tokenizer.mask_id, *piece]
        parts.append(tokens)
    return parts


def _size(parts: List[List[int]]) -> int:
    return 1 + sum(len(part) + 1 for part in parts)


def _line(parts: List[List[int]], length: int, tokenizer: Tokenizer) -> Tuple[List[int], int]:
    """The tokens, and the place of the second text's first one, or their number."""
    excess = _size(parts) - length
    if excess > 0:
        last = parts[-1][: max(0, len(parts[-1]) - excess)]
        excess -= len(parts[-1]) - len(last)
        parts = [*(part[: max(0, len(part) - excess)] for part in parts[:-1]), last]
    line, second = [tokenizer.cls_id], 0
    for part in parts:
        second = len(line)
        line += [*part, tokenizer.sep_id]
    return line, second if len(parts) > 1 else len(line)


def shown(text: Text) -> Dict[str, object]:
    """The text as the beginning of an output line."""
    row: Dict[str, object] = {} if text.id is None else {"id": text.id}
    row["text"] = text.parts[0]
    if len(text.parts) > 1:
        row["text_pair"] = text.parts[1]
    return row
