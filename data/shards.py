"""Shards: files of sentence pairs read example by example, so that a corpus of any size takes no RAM.

A file: 8 magic bytes, the length and CRC-32 of the header (uint64 each), the header (JSON, padded so that
the body starts at a multiple of 64 bytes), the examples' records, the tokens (A then B of each example, no
special tokens); all little-endian. The header has the body's CRC-32, so a shard can be verified without its
manifest, and each record has the CRC-32 of its example, so damage under a run is noticed too. A folder of
shards is complete when it has its manifest, which is written last and has the SHA-256 of its content.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np

from .files import DataError, OpenFiles, open_plain, write_atomically

FORMAT_VERSION = 2  # 1 had no checksums of examples
MANIFEST = "manifest.json"
TRAIN, VALIDATION = "train", "validation"  # splits
VERIFIED_AT_OPENING_BYTES = 1_000_000_000
# start: of segment A, in tokens
RECORD = np.dtype([("start", "<u8"), ("length_a", "<u2"), ("length_b", "<u2"), ("is_random_next", "<u4")])
# In files; crc32: of the record so far and of the tokens, from the shard's seed on.
_STORED = np.dtype([*RECORD.descr, ("crc32", "<u4")])
_STORED_STRUCT = struct.Struct("<QHHII")
_TOKEN_TYPES = ("<u2", "<u4")
_MOST_HEADER_BYTES = 1 << 20
_MOST_MANIFEST_BYTES = 1 << 30
_COUNTS = ("documents", "examples", "random_next", "sentences", "tokens")
_READ_AT_ONCE_BYTES = 1 << 22
_MAGIC = b"PAIRSHRD"
_PREFIX = struct.Struct("<8sQQ")
_ALIGNMENT_BYTES = 64


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:05d}.shard"


def write_shard(
    path: Path, records: np.ndarray, tokens: np.ndarray, description: Dict[str, Any]
) -> Dict[str, Any]:
    """Writes a shard to a temporary file, fsyncs it and renames it atomically; returns its header."""
    body = _with_checksums(records, tokens, _seed(description)).tobytes() + tokens.tobytes()
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


_OF_THE_SHARD = ("format", "examples", "random_next", "token_type", "body_bytes", "crc32")


def _seed(description: Mapping[str, Any]) -> int:
    """Where the checksums of a shard's examples start: another shard's examples don't match them."""
    own = {key: value for key, value in description.items() if key not in _OF_THE_SHARD}
    return zlib.crc32(json.dumps(own, sort_keys=True).encode())


def _with_checksums(records: np.ndarray, tokens: np.ndarray, seed: int) -> np.ndarray:
    heads, content, size = records.tobytes(), memoryview(tokens.tobytes()), tokens.dtype.itemsize
    stored = np.zeros(len(records), dtype=_STORED)
    for name in RECORD.names or ():
        stored[name] = records[name]
    checksums = []
    for number, (start, length_a, length_b, _) in enumerate(records.tolist()):
        place = number * RECORD.itemsize
        head = zlib.crc32(heads[place : place + RECORD.itemsize], seed)
        checksums.append(zlib.crc32(content[start * size : (start + length_a + length_b) * size], head))
    stored["crc32"] = checksums
    return stored


def read_header(path: Path) -> Tuple[Dict[str, Any], int]:
    """A shard's header and the offset of its body (bytes). DataError if the file isn't a complete shard."""
    try:
        with open_plain(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size:
                raise DataError(_damaged(path, f"it has {size} bytes"))
            magic, length, checksum = _PREFIX.unpack(prefix)
            text = file.read(min(length, _MOST_HEADER_BYTES))
    except OSError as error:
        raise DataError(_damaged(path, f"it can't be read ({error.strerror})")) from error
    if magic != _MAGIC or len(text) != length or zlib.crc32(text) != checksum:
        raise DataError(_damaged(path, "it doesn't start like a shard"))
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(_damaged(path, f"its header isn't JSON ({str(error)[:100]})")) from error
    problem = _problem_of(header)
    if problem:
        raise DataError(_damaged(path, problem))
    body_start = _PREFIX.size + length
    expected = body_start + header["body_bytes"]
    if size != expected:
        raise DataError(_damaged(path, f"it has {size} bytes instead of {expected}"))
    return header, body_start


def _problem_of(header: Any) -> Optional[str]:
    if not isinstance(header, dict):
        return f"its header is {json.dumps(header)[:60]}"
    if header.get("format") != FORMAT_VERSION:
        return f"its format is {json.dumps(header.get('format'))[:60]}, not {FORMAT_VERSION}"
    for key in ("examples", "body_bytes", "crc32"):
        if type(header.get(key)) is not int or header[key] < 0:
            return f"{key} is {json.dumps(header.get(key))[:60]}"
    if header.get("token_type") not in _TOKEN_TYPES:
        return f"token_type is {json.dumps(header.get('token_type'))[:60]}"
    rest = header["body_bytes"] - header["examples"] * _STORED.itemsize
    if rest < 0 or rest % np.dtype(header["token_type"]).itemsize:
        return f"{header['examples']} examples don't fit into {header['body_bytes']} bytes"
    return None


def verify_shard(path: Path) -> Dict[str, Any]:
    """The header of a shard whose body matches its checksum; otherwise DataError."""
    header, body_start = read_header(path)
    checksum = 0
    try:
        with open_plain(path) as file:
            file.seek(body_start)
            for block in iter(lambda: file.read(_READ_AT_ONCE_BYTES), b""):
                checksum = zlib.crc32(block, checksum)
    except OSError as error:
        raise DataError(_damaged(path, f"it can't be read ({error.strerror})")) from error
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
    manifest["sha256"] = _sha256(manifest)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def _sha256(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class ShardedExamples:
    """The examples of one split, in order. Pickled as its paths: each worker opens the files itself.

    Raises DataError for a shard that is damaged, or is cut or overwritten while it is in use.
    """

    def __init__(self, paths: List[Path]) -> None:
        self._paths = paths
        self._files = OpenFiles(paths)
        self._headers: List[Dict[str, Any]] = []
        self._starts: List[Tuple[int, int, int]] = []  # of the records and of the tokens (bytes); the seed
        for path in paths:
            header, body_start = read_header(path)
            tokens_start = body_start + header["examples"] * _STORED.itemsize
            self._headers.append(header)
            self._starts.append((body_start, tokens_start, _seed(header)))
        self._token_types = [np.dtype(header["token_type"]) for header in self._headers]
        counts = [header["examples"] for header in self._headers]
        self._first_index = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __reduce__(self) -> Tuple[Any, ...]:
        return ShardedExamples, (self._paths,)

    def __len__(self) -> int:
        return int(self._first_index[-1])

    def read(self, indices: np.ndarray) -> List[Tuple[np.ndarray, np.ndarray, int]]:
        """(tokens of A, tokens of B, 1 if B is a random next) for each index (int64 [B])."""
        shards = np.searchsorted(self._first_index, indices, side="right") - 1
        locals_ = indices - self._first_index[shards]
        return [self._read(shard, local) for shard, local in zip(shards.tolist(), locals_.tolist())]

    def _read(self, shard: int, local: int) -> Tuple[np.ndarray, np.ndarray, int]:
        (records_start, tokens_start, seed), token_type = self._starts[shard], self._token_types[shard]
        record = self._files.read(shard, records_start + local * _STORED.itemsize, _STORED.itemsize)
        start, length_a, length_b, is_random_next, checksum = _STORED_STRUCT.unpack(record)
        size = token_type.itemsize
        content = self._files.read(shard, tokens_start + start * size, (length_a + length_b) * size)
        if zlib.crc32(content, zlib.crc32(record[: RECORD.itemsize], seed)) != checksum:
            where = "was overwritten while it was in use, or never verified"
            raise DataError(
                _damaged(self._paths[shard], f"example {local} doesn't match its checksum: it {where}")
            )
        tokens = np.frombuffer(content, dtype=token_type)
        return tokens[:length_a], tokens[length_a:], is_random_next

    def lengths(self) -> np.ndarray:
        """int64 [examples]: tokens of A and B together."""
        lengths = [np.zeros(0, dtype=np.int64)]
        for shard, (records_start, tokens_start, _) in enumerate(self._starts):
            content = self._files.read(shard, records_start, tokens_start - records_start)
            records = np.frombuffer(content, dtype=_STORED)
            lengths.append(records["length_a"].astype(np.int64) + records["length_b"])
        return np.concatenate(lengths)

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """int64 [vocab_size]: number of occurrences of each token. Raises DataError for a larger token id."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for shard, path in enumerate(self._paths):
            for tokens in self._all_tokens(shard):
                found = np.bincount(tokens, minlength=vocab_size)
                if len(found) > vocab_size:
                    raise DataError(
                        _damaged(
                            path, f"token id {len(found) - 1} is outside of the vocabulary of {vocab_size}"
                        )
                    )
                counts += found
        return counts

    def _all_tokens(self, shard: int) -> Iterator[np.ndarray]:
        tokens_start = self._starts[shard][1]
        end = self._starts[shard][0] + self._headers[shard]["body_bytes"]
        for start in range(tokens_start, end, _READ_AT_ONCE_BYTES):
            content = self._files.read(shard, start, min(_READ_AT_ONCE_BYTES, end - start))
            yield np.frombuffer(content, dtype=self._token_types[shard])

    def damage(self, index: int, found: str) -> DataError:
        """The error about an example's content, for whoever knows what it may be."""
        shard = int(np.searchsorted(self._first_index, index, side="right")) - 1
        local = index - int(self._first_index[shard])
        return DataError(_damaged(self._paths[shard], f"example {local} has {found}"))


def load_manifest(folder: Path) -> Optional[Dict[str, Any]]:
    """The manifest of a complete folder; None if it is incomplete or has the shards of an earlier version.

    Raises DataError if the manifest can't be read or isn't as it was written.
    """
    path = folder / MANIFEST
    try:
        with open_plain(path) as file:
            text = file.read(_MOST_MANIFEST_BYTES + 1)
        if len(text) > _MOST_MANIFEST_BYTES:
            raise ValueError(f"it is larger than {_MOST_MANIFEST_BYTES} bytes")
        manifest = json.loads(text.decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(_damaged(path, f"it can't be read ({str(error)[:200]})")) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise DataError(_damaged(path, "it lists no splits"))
    if manifest.get("format") == 1:
        return None
    if manifest.get("sha256") != _sha256(manifest):
        raise DataError(_damaged(path, "its content doesn't match its own checksum"))
    if manifest.get("format") != FORMAT_VERSION or not isinstance(manifest.get("parameters"), dict):
        raise DataError(_damaged(path, f"its format isn't {FORMAT_VERSION}, or it has no parameters"))
    for split, headers in manifest["splits"].items():
        if not isinstance(headers, list) or not all(_has_counts(header) for header in headers):
            raise DataError(_damaged(path, f"its split {split[:60]!r} lacks a count"))
    return manifest


def _has_counts(header: Any) -> bool:
    return isinstance(header, dict) and all(
        type(header.get(name)) is int and header[name] >= 0 for name in _COUNTS
    )


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
