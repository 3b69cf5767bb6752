"""Pretraining examples in TFRecord files, as Graphcore's BERT applications write them; without TensorFlow.

A record is: length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data, little-endian.
Its data is a tf.train.Example message: a map from feature names to lists, here of int64.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import struct
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from .files import DataError, OpenFiles, local_path, write_atomically

by_package: Optional[Callable[[bytes], int]]
try:  # 3 GB/s, where numpy takes 24 MB/s; an IPU host may lack it
    from crc32c import crc32c as by_package  # type: ignore[import-not-found,no-redef,unused-ignore]
except ImportError:
    by_package = None

_POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli, RFC 3720 appendix B.4), bits reversed
_BLOCK_BYTES = 1024


@functools.lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """uint32 [_BLOCK_BYTES, 256]: the contribution of a byte's value to the final remainder, by position.

    A CRC is linear over XOR, so a block's remainder is the XOR of its bytes' contributions, in any order.
    """
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> np.uint32(1)) ^ np.where(last & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    table = np.empty((_BLOCK_BYTES, 256), dtype=np.uint32)
    table[-1] = last
    for place in range(_BLOCK_BYTES - 2, -1, -1):  # one more zero byte follows
        after = table[place + 1]
        table[place] = (after >> np.uint32(8)) ^ last[after & np.uint32(0xFF)]
    return table


def crc32c(data: bytes) -> int:
    """The CRC-32C of the bytes, which TFRecord files use: by the package crc32c, where it is installed."""
    return crc32c_by_table(data) if by_package is None else by_package(data)


def crc32c_by_table(data: bytes) -> int:
    """The same in numpy, for hosts without the package."""
    # The running remainder acts as if XORed into the next four bytes. Leading zeros don't change a remainder
    # of zero, so the first block may be padded on the left.
    content = np.frombuffer(data, dtype=np.uint8)
    if len(content) < 4:
        return _crc32c_of_few(data)
    fill = -len(content) % _BLOCK_BYTES
    filled = np.zeros(fill + len(content), dtype=np.uint8)
    filled[fill:] = content
    filled[fill : fill + 4] ^= 0xFF
    table, places = _table(), np.arange(_BLOCK_BYTES)
    remainder = np.uint32(0)
    for block in np.split(filled, len(filled) // _BLOCK_BYTES):
        block[:4] ^= np.frombuffer(int(remainder).to_bytes(4, "little"), dtype=np.uint8)
        remainder = np.bitwise_xor.reduce(table[places, block])
    return int(remainder) ^ 0xFFFFFFFF


def _crc32c_of_few(data: bytes) -> int:
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = (remainder >> 8) ^ int(_table()[-1][(remainder ^ byte) & 0xFF])
    return remainder ^ 0xFFFFFFFF


@functools.lru_cache(maxsize=1)
def _pair_table() -> np.ndarray:
    """uint32 [65536]: the remainder of two bytes, the first in the low byte."""
    pairs = np.arange(1 << 16)
    return np.asarray(_table()[-2][pairs & 0xFF] ^ _table()[-1][pairs >> 8])


def crc32c_of_many(messages: Sequence[bytes]) -> np.ndarray:
    """uint32 [messages]: the CRC-32C of each."""
    if by_package is None:
        return crc32c_of_many_by_table(messages)
    return np.array([by_package(message) for message in messages], dtype=np.uint32)


def crc32c_of_many_by_table(messages: Sequence[bytes]) -> np.ndarray:
    """The same in numpy. Vectorised, which is several times as fast as one by one."""
    lengths = np.array([len(message) for message in messages], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() < 4:
        return np.array([crc32c_by_table(message) for message in messages], dtype=np.uint32)
    width = int(lengths.max() + lengths.max() % 2)
    filled = np.zeros((len(messages), width), dtype=np.uint8)
    for row, message in zip(filled, messages):
        row[width - len(message) :] = np.frombuffer(message, dtype=np.uint8)
    # As in crc32c: the first four bytes include the initial remainder; leading zeros change nothing.
    first = (width - lengths)[:, None] + np.arange(4)
    filled[np.arange(len(messages))[:, None], first] ^= 0xFF
    table = _pair_table()
    remainders = np.zeros(len(messages), dtype=np.uint32)
    for pairs in np.ascontiguousarray(filled.view("<u2").T):
        remainders = (remainders >> np.uint32(16)) ^ table[(remainders ^ pairs) & np.uint32(0xFFFF)]
    return remainders ^ np.uint32(0xFFFFFFFF)


def masked(crc: np.ndarray) -> np.ndarray:
    """As stored in TFRecord files: rotated right by 15 bits plus a constant (TensorFlow's record format)."""
    rotated = (crc >> np.uint32(15)) | (crc << np.uint32(17))
    return np.asarray(rotated + np.uint32(0xA282EAD8))


def masked_crc32c(data: bytes) -> int:
    return int(masked(np.array([crc32c(data)], dtype=np.uint32))[0])


# A parser for serialised tf.train.Example messages, without a protobuf library. Their definition, from
# TensorFlow's example.proto and feature.proto (with field numbers):
#     Example   { Features features = 1 }
#     Features  { map<string, Feature> feature = 1 }, so repeated { string key = 1; Feature value = 2 }
#     Feature   { BytesList = 1 | FloatList = 2 | Int64List = 3 }
#     Int64List { repeated int64 value = 1 }, packed (one run of varints) or not (a field each)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MessageError(Exception):
    """The bytes aren't a valid message; the text says why."""


def int64_features(message: bytes) -> Dict[str, np.ndarray]:
    """Feature names to int64 [values]; features of other types are left out."""
    features: Dict[str, np.ndarray] = {}
    for container in _submessages(message, 1):
        for entry in _submessages(container, 1):
            fields = dict(_fields(entry))
            key, value = fields.get(1, b""), fields.get(2, b"")
            if not isinstance(key, bytes) or not isinstance(value, bytes):
                raise MessageError("a feature's name or value is not a message")
            for values in _submessages(value, 3):
                features[key.decode("utf-8", "replace")] = _int64_list(values)
    return features


def _int64_list(message: bytes) -> np.ndarray:
    parts: List[np.ndarray] = []
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            parts.append(_packed_varints(value))
        elif number == 1:
            parts.append(np.array([value], dtype=np.uint64).view(np.int64))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _packed_varints(data: bytes) -> np.ndarray:
    """Base 128, least significant group first; a byte's high bit says that another one follows."""
    groups = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(groups < 0x80)
    if len(ends) == len(groups):
        return groups.astype(np.int64)
    if groups[-1] >= 0x80:
        raise MessageError("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends + 1 - starts
    if lengths.max() > 10:
        raise MessageError("a number has more than 64 bits")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    shifted = (groups & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    values: np.ndarray = np.bitwise_or.reduceat(shifted, starts).view(np.int64)
    return values


def _submessages(message: bytes, wanted: int) -> Iterator[bytes]:
    for number, value in _fields(message):
        if number == wanted:
            if not isinstance(value, bytes):
                raise MessageError(f"field {wanted} is not a message")
            yield value


def _fields(message: bytes) -> Iterator[Tuple[int, Union[int, bytes]]]:
    """Field numbers with values: an int for a varint, bytes for every other type."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise MessageError(f"unknown wire type {kind} at byte {at}")
        if at + length > len(message):
            raise MessageError(f"a field of {length} bytes at byte {at} goes beyond the end")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> Tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise MessageError("a number is cut off or has more than 64 bits")


FEATURES = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "next_sentence_labels",
)
PACKED_FEATURES = (
    "packed_input_ids",
    "packed_input_mask",
    "packed_segment_ids",
    "packed_position_ids",
    "packed_masked_lm_positions",
    "packed_masked_lm_ids",
    "packed_next_sentence_labels",
)
# The features of each group have equal lengths: tokens, predictions, and one label per example.
_SAME_LENGTH = (FEATURES[:3], FEATURES[3:5])

HEADER_BYTES = 12
_FOOTER_BYTES = 4
_DIGEST_BYTES = 16
VERIFIED_AT_ONCE_BYTES = 4_000_000  # larger batches of records aren't faster, and exceed the CPU caches


class TfRecordFile:
    """The examples of a TFRecord file, or of all files of a folder or glob in sorted order, by number.

    Opening reads all records and verifies their checksums, so that a damaged file is an error before training
    and not in the middle. With `index_folder` the result is cached there by the file's path, size and
    modification time; reading a record verifies its checksum again. It can be pickled for worker processes,
    which don't scan again.
    Raises DataError for missing, empty or truncated files, and for wrong checksums.
    """

    def __init__(self, source: str, *, index_folder: Optional[Path] = None) -> None:
        self.source = source
        self.paths = find_tfrecord_files(source)
        scans = [_scan_of(path, index_folder) for path in self.paths]
        # per file, the offset of each record in bytes: int64 [records]
        self.offsets = [offsets for _, offsets in scans]
        self._digests = [digest for digest, _ in scans]
        # number of the first record of each file, then the total
        self._first = np.concatenate([[0], np.cumsum([len(offsets) for offsets in self.offsets])])
        if len(self) == 0:
            raise DataError(f"no record in {source!r}: its {len(self.paths)} file(s) are empty.")
        self._files = OpenFiles(self.paths)

    def __len__(self) -> int:
        return int(self._first[-1])

    def fingerprint(self) -> str:
        """A hex digest of the files' order and content, independent of their paths."""
        return hashlib.sha256(b"tfrecord-1" + b"".join(self._digests)).hexdigest()

    def describe(self, index: int) -> str:
        """The record's number and position in its file, for messages."""
        file, number = self._place(index)
        return f"record {number} at byte {self.offsets[file][number]} of {str(self.paths[file])!r}"

    def _place(self, index: int) -> Tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return file, index - int(self._first[file])

    def read(self, index: int) -> Dict[str, np.ndarray]:
        """The six FEATURES of an example as stored: int64 [S] three times, int64 [M] twice, int64 [1].

        In `masked_lm_ids` 0 means that the prediction is unused. Other features of the record are ignored.
        Raises DataError with file and record for a wrong checksum and a missing or wrongly sized feature.
        """
        return _checked(self._features(index), self.describe(index))

    def read_packed(self, index: int) -> Dict[str, np.ndarray]:
        """The PACKED_FEATURES of a packed row as stored (data/packed_records.py), int64; others are ignored.

        Raises DataError with file and record for a wrong checksum and for missing features.
        """
        features, where = self._features(index), self.describe(index)
        missing = [name for name in PACKED_FEATURES if name not in features]
        if set(FEATURES) <= set(features):
            raise DataError(
                f"{where} is not packed, but this recipe reads packed rows: use files that are packed, text "
                "(any text is packed when it is prepared), or --no-packed-data"
            )
        if missing:
            raise DataError(
                f"{where} lacks the feature(s) {', '.join(missing)}; it has "
                f"{', '.join(sorted(features)) or 'none'}. Packed rows are described in docs/packing.md."
            )
        return {name: features[name] for name in PACKED_FEATURES}

    def _features(self, index: int) -> Dict[str, np.ndarray]:
        file, number = self._place(index)
        where = self.describe(index)
        try:
            return int64_features(self._data_at(file, int(self.offsets[file][number]), where))
        except MessageError as error:
            raise DataError(f"{where} is not a tf.train.Example: {error}. Write the file again.") from error

    def _data_at(self, file: int, offset: int, where: str) -> bytes:
        (length,) = struct.unpack("<Q", self._files.read(file, offset, 8))
        content = self._files.read(file, offset + HEADER_BYTES, length + _FOOTER_BYTES)
        data, (stored,) = content[:length], struct.unpack("<I", content[length:])
        if masked_crc32c(data) != stored:
            raise DataError(_damaged(where))
        return data


def find_tfrecord_files(source: str) -> List[Path]:
    """The file, the TFRecord files of a folder (recursively), or the matches of a glob, sorted.

    In a folder these are *.tfrecord, and files with other names that begin as TFRecord files do.
    """
    path = local_path(source)
    if path.is_file():
        return [path]
    pattern = str(path / "**" / "*.tfrecord") if path.is_dir() else str(path)
    if path.is_dir():
        matches = (match for match in path.rglob("*") if match.is_file() and is_tfrecord_file(match))
    else:
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (the pattern may be absolute)
        matches = (match for match in map(Path, found) if match.is_file())
    files = sorted(matches)
    if not files:
        raise DataError(
            f"no TFRecord file: looked for {pattern!r}. Check the path, or the pattern if it is one."
        )
    return files


def is_tfrecord_file(path: Path) -> bool:
    """Whether the file is named *.tfrecord or begins with a record. Raises DataError if it can't be read."""
    if path.suffix == ".tfrecord":
        return True
    try:
        with path.open("rb") as stream:
            header = stream.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(
            f"cannot read {str(path)!r}: {error.strerror}. Check that you may read it."
        ) from error
    return len(header) == HEADER_BYTES and is_header(header)


def is_header(header: bytes) -> bool:
    """Whether these HEADER_BYTES begin a record: a length, then its masked checksum."""
    return masked_crc32c(header[:8]) == int.from_bytes(header[8:], "little")


def _damaged(where: str) -> str:
    return f"{where} is damaged: the checksum of its data is wrong. Copy or write the file again."


def _checked(features: Dict[str, np.ndarray], where: str) -> Dict[str, np.ndarray]:
    missing = [name for name in FEATURES if name not in features]
    if missing and set(PACKED_FEATURES) <= set(features):
        depth, slots = (len(features[name]) for name in (PACKED_FEATURES[6], PACKED_FEATURES[4]))
        raise DataError(
            f"{where} is packed: a row of up to {depth} sequences with {slots} predictions. Read it with "
            f"--packed-data --max-sequences-per-pack {depth} --mask-tokens {slots - depth + 1}"
        )
    if missing:
        raise DataError(
            f"{where} lacks the feature(s) {', '.join(missing)}; "
            f"it has {', '.join(sorted(features)) or 'none'}. Only unpacked pretraining examples can be read."
        )
    for names in _SAME_LENGTH:
        lengths = {name: len(features[name]) for name in names}
        if len(set(lengths.values())) != 1:
            raise DataError(
                f"{where} has features whose lengths should agree: {lengths}. Write the file again."
            )
    if len(features["next_sentence_labels"]) != 1:
        found = len(features["next_sentence_labels"])
        raise DataError(f"{where} has {found} next_sentence_labels; an unpacked example has exactly 1.")
    return {name: features[name] for name in FEATURES}


_Scan = Tuple[
    bytes, np.ndarray
]  # a digest of all lengths and checksums; offsets of the records, int64 [records]


def _scan_of(path: Path, index_folder: Optional[Path]) -> _Scan:
    """A file's scan, from the folder that caches it."""
    if index_folder is None:
        return _scanned(path)
    stat = path.stat()
    key = f"verified {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    index = Path(index_folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.index"
    if index.is_file():
        content = index.read_bytes()
        checksum, kept = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if checksum == _digest(kept) and len(kept) >= _DIGEST_BYTES and len(kept) % 8 == 0:
            return kept[:_DIGEST_BYTES], np.frombuffer(kept[_DIGEST_BYTES:], dtype="<i8")
    digest, offsets = _scanned(path)
    kept = digest + offsets.astype("<i8").tobytes()
    index.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(index, _digest(kept) + kept)
    return digest, offsets


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _scanned(path: Path) -> _Scan:
    """Reads the whole file once. DataError names the first damaged record."""
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    offsets: List[int] = []
    file = OpenFiles([path])
    waiting: List[Tuple[int, int]] = []
    longest = 0
    for offset, length in _records(file):
        longest = max(longest, length)
        if waiting and longest * (len(waiting) + 1) > VERIFIED_AT_ONCE_BYTES:
            hasher.update(_verified(file, waiting, len(offsets) - len(waiting)))
            waiting, longest = [], length
        waiting.append((offset, length))
        offsets.append(offset)
    if waiting:
        hasher.update(_verified(file, waiting, len(offsets) - len(waiting)))
    return hasher.digest(), np.array(offsets, dtype=np.int64)


def _verified(file: OpenFiles, records: Sequence[Tuple[int, int]], first: int) -> bytes:
    """Lengths and stored checksums of records whose data matches its checksum; otherwise DataError."""
    contents = [
        (file.read(0, offset + HEADER_BYTES, length + _FOOTER_BYTES), length) for offset, length in records
    ]
    found = masked(crc32c_of_many([content[:length] for content, length in contents]))
    stored = b"".join(content[length:] for content, length in contents)
    wrong = np.flatnonzero(found != np.frombuffer(stored, dtype="<u4"))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(_damaged(f"record {first + row} at byte {records[row][0]} of {str(file.paths[0])!r}"))
    return np.array([length for _, length in records], dtype="<i8").tobytes() + stored


def _records(file: OpenFiles) -> Iterator[Tuple[int, int]]:
    """Offset and data length of each record."""
    size = file.size(0)
    offset = number = 0
    checked: Dict[bytes, bool] = {}  # there are few distinct lengths: each is verified once
    while offset < size:
        header = file.read(0, offset, min(HEADER_BYTES, size - offset))
        where = f"record {number} at byte {offset} of {str(file.paths[0])!r}"
        if len(header) == HEADER_BYTES:
            if header not in checked:
                checked[header] = is_header(header)
            if not checked[header]:
                raise DataError(
                    f"{where} is damaged: the checksum of its length is wrong. Is it an uncompressed "
                    "TFRecord file? If so, copy or write it again."
                )
        length = int.from_bytes(header[:8], "little")
        end = offset + HEADER_BYTES + length + _FOOTER_BYTES
        if len(header) < HEADER_BYTES or end > size:
            raise DataError(
                f"{where} is cut off: the file ends at byte {size}, the record at byte {end} or later. "
                "Copy or write the file again."
            )
        yield offset, length
        offset = end
        number += 1
