"""Documents to chunks: what one worker turns into one shard, and what is held out.

Cutting depends on the documents alone, never on the number of workers.
"""

from __future__ import annotations

import hashlib
from typing import Iterator, List, NamedTuple

TRAIN, VALIDATION = "train", "validation"

# Chunks begin small, so that a small corpus still gives every core some, and double every few.
_FIRST_CHUNK_CHARACTERS = 256 * 1024
_LARGEST_CHUNK_CHARACTERS = 4 * 1024 * 1024
CHUNKS_OF_A_SIZE = 8
# A random next segment comes from the same chunk, so a chunk needs a choice of documents.
_CHUNK_DOCUMENTS = 8


class Chunk(NamedTuple):
    split: str
    number: int  # within its split
    documents: List[str]
    digest: str


def is_held_out(document: str, validation_fraction: float) -> bool:
    """Whether a document belongs to the validation set: by its text, so that copies never part.

    The hash has a fixed key, not the run's seed: what one run holds out, a later phase doesn't train on.
    """
    digest = hashlib.blake2b(document.encode(), digest_size=8, key=b"validation split").digest()
    return int.from_bytes(digest, "little") < validation_fraction * 2.0**64


def cut_chunks(documents: Iterator[str], validation_fraction: float) -> Iterator[Chunk]:
    """Chunks of whole documents, the splits apart; a small rest joins the chunk before."""
    splits = {TRAIN: _Cutter(TRAIN), VALIDATION: _Cutter(VALIDATION)}
    for document in documents:
        cutter = splits[VALIDATION if is_held_out(document, validation_fraction) else TRAIN]
        yield from cutter.add(document)
    for cutter in splits.values():
        yield from cutter.finish()


class _Cutter:
    """Gathers the documents of a split. The last full chunk waits, for the rest may have to join it."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._number = 0
        self._waiting: List[str] = []
        self._open: List[str] = []
        self._open_characters = 0

    def add(self, document: str) -> Iterator[Chunk]:
        self._open.append(document)
        self._open_characters += len(document)
        if self._is_full():
            if self._waiting:
                yield self._chunk(self._waiting)
            self._waiting, self._open, self._open_characters = self._open, [], 0

    def _is_full(self) -> bool:
        doublings = (self._number + bool(self._waiting)) // CHUNKS_OF_A_SIZE
        wanted = min(_LARGEST_CHUNK_CHARACTERS, _FIRST_CHUNK_CHARACTERS * 2 ** min(doublings, 16))
        if self._open_characters >= _LARGEST_CHUNK_CHARACTERS:
            return len(self._open) > 1
        return self._open_characters >= wanted and len(self._open) >= _CHUNK_DOCUMENTS

    def finish(self) -> Iterator[Chunk]:
        rest_is_small = self._open_characters < _FIRST_CHUNK_CHARACTERS or len(self._open) < 2
        if self._waiting and rest_is_small:
            self._open, self._waiting = self._waiting + self._open, []
        for documents in (self._waiting, self._open):
            if documents:
                yield self._chunk(documents)

    def _chunk(self, documents: List[str]) -> Chunk:
        hasher = hashlib.blake2b(digest_size=16)
        for document in documents:
            hasher.update(document.encode() + b"\0")
        chunk = Chunk(self._split, self._number, documents, hasher.hexdigest())
        self._number += 1
        return chunk
