"""Turns a corpus into shards of sentence pairs, once, on all cores; interrupted runs are continued.

The parent reads the documents and cuts them into chunks; workers turn a chunk into a shard. Chunks depend
only on the documents, and a shard is a pure function of its chunk, its number and the parameters, so the
result is the same for any number of workers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from tqdm import tqdm

from .corpora import Corpus
from .files import DataError, exclusive
from .pairs import build_pairs, split_long_sentences, split_sentences
from .shards import (
    RECORD,
    TRAIN,
    VALIDATION,
    load_manifest,
    shard_name,
    verify_shard,
    write_manifest,
    write_shard,
)
from .tokenizer import Tokenizer
from .workers import (
    SpawnContext,
    described,
    end,
    end_with_parent,
    process_numbers,
    signals_deferred,
    started_since,
)

_CONTENT_VERSION = 1  # of what a folder of shards holds, whatever their format
_NUM_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]
# Chunks start small, so that a small corpus is spread over all cores, and double every few chunks.
_FIRST_CHUNK_CHARACTERS = 256 * 1024
_LARGEST_CHUNK_CHARACTERS = 4 * 1024 * 1024
_CHUNKS_OF_A_SIZE = 8
# A random next segment comes from the same chunk, so a chunk needs several documents.
_CHUNK_DOCUMENTS = 8
# A corpus that is larger than either has a document to hold out, unless validation_fraction is tiny.
_UNDECIDED_DOCUMENTS = 10_000
_UNDECIDED_CHARACTERS = 64_000_000


@dataclasses.dataclass(frozen=True)
class PairParameters:
    """The parameters of shards, besides the corpus and the tokeniser."""

    sequence_length: int
    short_sequence_probability: float
    validation_fraction: float
    seed: int


def prepare_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    parameters: PairParameters,
    cache_folder: Path,
    *,
    workers: Optional[int] = None,
    timeout_s: float = 0.0,
    progress: bool = True,
) -> Path:
    """The folder of the corpus's shards, which is written if it isn't complete.

    workers: processes besides this one; 0 works in this process; None uses all usable cores, but works in
    this process for a small corpus or on two cores. Waits for another process that is preparing the same
    shards. timeout_s: raises DataError if no worker finishes a shard for so long (0: never).
    """
    description: Dict[str, Any] = dict(
        dataclasses.asdict(parameters),
        format=_CONTENT_VERSION,
        corpus=corpus.fingerprint(),
        tokenizer=tokenizer.fingerprint(),
    )
    key = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = cache_folder / f"pairs-{key}"
    if load_manifest(folder) is not None:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "lock") as locked:
        if load_manifest(folder) is not None:
            return folder
        if locked:  # partial files of a killed run
            for path in folder.glob(".*"):
                with contextlib.suppress(OSError):  # no harm; a network file system keeps files that are open
                    path.unlink()
        chunks = cut_chunks(corpus.documents(), parameters.validation_fraction)
        headers = _write_shards(chunks, tokenizer, parameters, folder, workers, timeout_s, progress)
        if not any(headers.values()):
            raise DataError(f"the corpus {corpus.name} holds no documents")
        write_manifest(folder, dict(description, corpus_name=corpus.name), headers)
    return folder


def _write_shards(
    chunks: Iterator[Chunk],
    tokenizer: Tokenizer,
    parameters: PairParameters,
    folder: Path,
    workers: Optional[int],
    timeout_s: float,
    progress: bool,
) -> Dict[str, List[Dict[str, Any]]]:
    """Writes the missing shards; returns the headers of each split's shards, in order."""
    if workers is None:
        # Starting workers takes seconds, so a corpus of few chunks is faster without them. So is any corpus
        # on two cores: the tokenizers library, which takes 80% of the time, is multithreaded.
        first = list(itertools.islice(chunks, _CHUNKS_OF_A_SIZE))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if cores > 2 and len(first) == _CHUNKS_OF_A_SIZE else 0
        chunks = itertools.chain(first, chunks)
    headers: Dict[str, Dict[int, Dict[str, Any]]] = {TRAIN: {}, VALIDATION: {}}
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(desc="preprocessing", unit=" tokens", unit_scale=True, disable=not progress, leave=False)
        )

        def finished(chunk_split: str, chunk_number: int, header: Dict[str, Any]) -> None:
            headers[chunk_split][chunk_number] = header
            bar.update(header["tokens"])

        missing = _skip_written(chunks, folder, finished)
        if workers == 0:
            for chunk in missing:
                finished(chunk.split, chunk.number, write_chunk(chunk, tokenizer, parameters, folder))
        else:
            _write_in_parallel(missing, tokenizer, parameters, folder, workers, timeout_s, finished)
    return {split: [by_number[i] for i in sorted(by_number)] for split, by_number in headers.items()}


_Finished = Callable[[str, int, Dict[str, Any]], None]


def _skip_written(chunks: Iterator[Chunk], folder: Path, finished: _Finished) -> Iterator[Chunk]:
    """The chunks whose shard isn't complete: an interrupted run's shards are kept."""
    for chunk in chunks:
        path = folder / shard_name(chunk.split, chunk.number)
        if path.exists():
            with contextlib.suppress(DataError):
                header = verify_shard(path)
                if header.get("chunk") == chunk.digest:
                    finished(chunk.split, chunk.number, header)
                    continue
        yield chunk


def write_chunk(
    chunk: Chunk, tokenizer: Tokenizer, parameters: PairParameters, folder: Path
) -> Dict[str, Any]:
    """Tokenises a chunk, builds its pairs, writes the shard; returns the shard's header."""
    sentences = [split_sentences(document) for document in chunk.documents]
    encoded = tokenizer.encode_lines([sentence for document in sentences for sentence in document])
    tokens = np.concatenate(encoded) if encoded else np.zeros(0, dtype=np.int32)
    lengths = iter([len(ids) for ids in encoded])
    max_tokens = parameters.sequence_length - _NUM_SPECIAL_TOKENS
    pairs = build_pairs(
        [
            split_long_sentences(list(itertools.islice(lengths, len(document))), max_tokens)
            for document in sentences
        ],
        max_tokens=max_tokens,
        short_sequence_probability=parameters.short_sequence_probability,
        rng=random.Random(f"{parameters.seed}/{chunk.split}/{chunk.number}"),
    )
    records = np.zeros(len(pairs), dtype=RECORD)
    token_type = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    segments = []
    if pairs:
        a_start, a_end, b_start, b_end, is_random_next = np.array(pairs, dtype=np.int64).T
        records["length_a"], records["length_b"] = a_end - a_start, b_end - b_start
        records["start"][1:] = np.cumsum(a_end - a_start + b_end - b_start)[:-1]
        records["is_random_next"] = is_random_next
        segments = [
            segment for pair in pairs for segment in (tokens[pair[0] : pair[1]], tokens[pair[2] : pair[3]])
        ]
    return write_shard(
        folder / shard_name(chunk.split, chunk.number),
        records,
        (np.concatenate(segments) if segments else tokens[:0]).astype(token_type),
        {
            "folder": folder.name,
            "chunk": chunk.digest,
            "documents": len(chunk.documents),
            "sentences": len(encoded),
            "tokens": len(tokens),
        },
    )


def _write_in_parallel(
    chunks: Iterator[Chunk],
    tokenizer: Tokenizer,
    parameters: PairParameters,
    folder: Path,
    workers: int,
    timeout_s: float,
    finished: _Finished,
) -> None:
    others = process_numbers()
    patience_s = min(timeout_s or _PATIENCE_S, _PATIENCE_S)
    # Spawned, not forked: a fork would copy locks held by threads of this process (tokenizers, torch).
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, SpawnContext(), _start_worker, (tokenizer, parameters, folder)
    )
    pending: Dict[concurrent.futures.Future[Dict[str, Any]], Chunk] = {}

    def collect(limit: int) -> None:
        while len(pending) > limit:
            done, _ = concurrent.futures.wait(
                pending, timeout_s or None, return_when=concurrent.futures.FIRST_COMPLETED
            )
            if not done:
                hung = started_since(others)
                words = described(hung)
                end(hung)
                raise DataError(
                    f"no preprocessing worker finished a shard for {timeout_s:g} s (data_timeout_s): "
                    f"{words}. They were killed; finished shards are kept. See that the text can be read, "
                    "then start again"
                )
            for future in done:
                chunk = pending.pop(future)
                finished(chunk.split, chunk.number, future.result())

    try:
        for chunk in chunks:
            # Two chunks per worker keep it busy; more would only use memory.
            collect(limit=2 * workers - 1)
            with signals_deferred():  # submitting starts workers
                work = pool.submit(_work, chunk)
            pending[work] = chunk
        collect(limit=0)
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {workers} preprocessing workers died: killed by the out-of-memory killer, or the script "
            "that started it isn't guarded by `if __name__ == '__main__'`. Finished shards are kept; "
            "start again with fewer preprocessing_workers, or with 0 to use none"
        ) from error
    finally:
        # Chunks in progress are finished and kept. Cancelling them would save seconds, but if a signal to the
        # process group has killed the workers too, a pool with cancelled work deadlocks (Python 3.11).
        calls: Any = getattr(pool, "_call_queue", None)
        pool.shutdown(wait=False)
        # A worker that hangs would keep this process for ever.
        for left in end(started_since(others), patience_s=patience_s):
            print(f"warning: killed a preprocessing worker that didn't end: {left}", file=sys.stderr)
        # Python 3.8 to 3.11.4 deadlock otherwise: a thread writes to the pipe of workers that were killed
        # until it is read (https://github.com/python/cpython/issues/94777).
        if calls is not None:
            calls._reader.close()


_PATIENCE_S = 30.0  # with workers whose results nobody waits for any more
_worker: Dict[str, Any] = {}


def _start_worker(tokenizer: Tokenizer, parameters: PairParameters, folder: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per worker
    _worker.update(tokenizer=tokenizer, parameters=parameters, folder=folder)
    end_with_parent()  # a parent that is killed can't stop its workers


def _work(chunk: Chunk) -> Dict[str, Any]:
    return write_chunk(chunk, _worker["tokenizer"], _worker["parameters"], _worker["folder"])


class Chunk(NamedTuple):
    split: str
    number: int  # within its split
    documents: List[str]
    digest: str


def is_held_out(document: str, validation_fraction: float) -> bool:
    """Whether a document is in the validation set: decided by its text, so duplicates stay together.

    The hash has a fixed key, not the run's seed: documents held out by one run are never trained on by
    another.
    """
    return _hash(document) < validation_fraction * 2.0**64


def _hash(document: str) -> int:
    digest = hashlib.blake2b(document.encode(), digest_size=8, key=b"validation split").digest()
    return int.from_bytes(digest, "little")


def assign_splits(documents: Iterator[str], validation_fraction: float) -> Iterator[Tuple[str, str]]:
    """Each document's split, and the document, in the corpus's order.

    Of a small corpus `is_held_out` may pick none. Then the fraction of the documents with the lowest hashes
    is held out: at least one, if there are two different ones.
    """
    first: List[str] = []  # up to the first one that is held out
    if validation_fraction > 0:
        characters = 0
        for document in documents:
            first.append(document)
            characters += len(document)
            enough = len(first) == _UNDECIDED_DOCUMENTS or characters >= _UNDECIDED_CHARACTERS
            if enough or is_held_out(document, validation_fraction):
                break
        else:
            hashes = [_hash(document) for document in first]
            distinct = sorted(set(hashes))
            count = min(max(1, round(validation_fraction * len(distinct))), len(distinct) - 1)
            held_out = set(distinct[: max(count, 0)])
            for document, number in zip(first, hashes):
                yield VALIDATION if number in held_out else TRAIN, document
            return
    for document in itertools.chain(first, documents):
        yield VALIDATION if is_held_out(document, validation_fraction) else TRAIN, document


def cut_chunks(documents: Iterator[str], validation_fraction: float) -> Iterator[Chunk]:
    """Chunks of whole documents, per split; a small remainder joins the previous chunk."""
    splits = {TRAIN: _Cutter(TRAIN), VALIDATION: _Cutter(VALIDATION)}
    for split, document in assign_splits(documents, validation_fraction):
        yield from splits[split].add(document)
    for cutter in splits.values():
        yield from cutter.finish()


class _Cutter:
    """Collects the documents of a split. Holds back the last full chunk, which a small remainder may join."""

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
        doublings = (self._number + bool(self._waiting)) // _CHUNKS_OF_A_SIZE
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
