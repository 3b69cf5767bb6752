"""Shards: memory-mapped files of sentence pairs, so that a corpus of any size takes no RAM.

A file: 8 magic bytes, the length and CRC-32 of the header (uint64 each), the header (JSON, padded so that
the body starts at a multiple of 64 bytes), the examples' records, the tokens (A then B of each example, no
special tokens); all little-endian. The header has the body's CRC-32, so a shard can be verified without its
manifest. A folder of shards is complete when it has its manifest, which is written last.
"""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from .files import DataError, write_atomically

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TRAIN, VALIDATION = "train", "validation"  # splits
VERIFIED_AT_OPENING_BYTES = 1_000_000_000
RECORD = np.dtype([("start", "<u8"), ("length_a", "<u2"), ("length_b", "<u2"), ("is_random_next", "<u4")])
_MAGIC = b"PAIRSHRD"
_PREFIX = struct.Struct("<8sQQ")
_ALIGNMENT_BYTES = 64


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:05d}.shard"


def write_shard(
    path: Path, records: np.ndarray, tokens: np.ndarray, description: Dict[str, Any]
) -> Dict[str, Any]:
    """Writes a shard to a temporary file, fsyncs it and renames it atomically; returns its header."""
    body = records.tobytes() + tokens.tobytes()
    header = dict(
        description,
        format=FORMAT_VERSION,
        examples=len(records),
        random_next=int(records["is_random_next"].sum()),
        token_type=tokens.dtype.str,
        body_bytes=len(body),
        crc32=zlib.crc32(body),
    )
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % _ALIGNMENT_BYTES)
    write_atomically(path, _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text + body)
    return header


def read_header(path: Path) -> Tuple[Dict[str, Any], int]:
    """A shard's header and the offset of its body (bytes). DataError if the file isn't a complete shard."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size:
                raise DataError(_damaged(path, f"it has {size} bytes"))
            magic, length, checksum = _PREFIX.unpack(prefix)
            text = file.read(min(length, size))
    except OSError as error:
        raise DataError(_damaged(path, f"it can't be read ({error.strerror})")) from error
    if magic != _MAGIC or zlib.crc32(text) != checksum:
        raise DataError(_damaged(path, "it doesn't start like a shard"))
    header: Dict[str, Any] = json.loads(text)
    body_start = _PREFIX.size + length
    expected = body_start + header["body_bytes"]
    if size != expected:
        raise DataError(_damaged(path, f"it has {size} bytes instead of {expected}"))
    return header, body_start


def verify_shard(path: Path) -> Dict[str, Any]:
    """The header of a shard whose body matches its checksum; otherwise DataError."""
    header, body_start = read_header(path)
    checksum = 0
    with path.open("rb") as file:
        file.seek(body_start)
        for block in iter(lambda: file.read(1 << 22), b""):
            checksum = zlib.crc32(block, checksum)
    if checksum != header["crc32"]:
        raise DataError(_damaged(path, f"its checksum is {checksum:08x} instead of {header['crc32']:08x}"))
    return header


def _damaged(path: Path, found: str) -> str:
    return f"{path} is damaged: {found}. Delete the folder {path.parent} and start again: it is rebuilt."


def write_manifest(
    folder: Path, parameters: Dict[str, Any], headers: Dict[str, List[Dict[str, Any]]]
) -> None:
    """Marks the folder complete. headers: those of each split's shards, in order."""
    manifest = {"format": FORMAT_VERSION, "parameters": parameters, "splits": headers}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


class ShardedExamples:
    """The examples of one split, in order. Pickled as its paths: each worker maps the files again."""

    def __init__(self, paths: List[Path]) -> None:
        self._paths = paths
        self._map()

    def _map(self) -> None:
        self._records: List[np.ndarray] = []
        self._tokens: List[np.ndarray] = []
        for path in self._paths:
            header, body_start = read_header(path)
            # A plain array over the map, because slicing a numpy.memmap is several times slower.
            data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            tokens_start = body_start + header["examples"] * RECORD.itemsize
            self._records.append(data[body_start:tokens_start].view(RECORD))
            self._tokens.append(data[tokens_start:].view(header["token_type"]))
        counts = [len(records) for records in self._records]
        self._first_index = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __getstate__(self) -> Dict[str, Any]:
        return {"_paths": self._paths}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self._paths = state["_paths"]
        self._map()

    def __len__(self) -> int:
        return int(self._first_index[-1])

    def read(self, indices: np.ndarray) -> List[Tuple[np.ndarray, np.ndarray, int]]:
        """(tokens of A, tokens of B, 1 if B is a random next) for each index (int64 [B])."""
        shards = np.searchsorted(self._first_index, indices, side="right") - 1
        locals_ = indices - self._first_index[shards]
        examples = []
        for shard, local in zip(shards.tolist(), locals_.tolist()):
            start, length_a, length_b, is_random_next = self._records[shard][local].item()
            tokens = self._tokens[shard]
            middle = start + length_a
            examples.append((tokens[start:middle], tokens[middle : middle + length_b], is_random_next))
        return examples

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """int64 [vocab_size]: number of occurrences of each token."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for tokens in self._tokens:
            counts += np.bincount(tokens, minlength=vocab_size)
        return counts


def load_manifest(folder: Path) -> Optional[Dict[str, Any]]:
    """The manifest of a complete folder, None if incomplete; DataError if it can't be read."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(_damaged(path, f"it can't be read ({error})")) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise DataError(_damaged(path, "it lists no splits"))
    return manifest


def open_shards(folder: Path, split: str) -> ShardedExamples:
    """The examples of a split. DataError names the first damaged shard found.

    Every shard's header and size are compared with the manifest. Checksums take about a second per gigabyte,
    which would make the start slow for a large corpus, so only VERIFIED_AT_OPENING_BYTES are verified, in
    shards chosen at random at each opening. Small data is therefore always verified completely, and a bit
    flip in large data is found within some starts, not necessarily at the next. Preprocessing verifies each
    shard that it keeps from an interrupted run.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{folder} holds no finished shards ({MANIFEST} is missing): start the preprocessing again"
        )
    checked, examples = [], []
    for index, expected in enumerate(manifest["splits"].get(split, [])):
        path = folder / shard_name(split, index)
        header, _ = read_header(path)
        if header != expected:
            raise DataError(_damaged(path, "it isn't the shard that the manifest lists"))
        checked.append((path, int(header["body_bytes"])))
        if header["examples"]:
            examples.append(path)
    random.Random().shuffle(checked)  # a separate generator: the run's random state is unchanged
    verified_bytes = 0
    for path, body_bytes in checked:
        verified_bytes += body_bytes
        if verified_bytes > VERIFIED_AT_OPENING_BYTES:
            break
        verify_shard(path)
    return ShardedExamples(examples)
