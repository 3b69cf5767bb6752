"""Pretraining examples in TFRecord files, as Graphcore's BERT applications write them; needs no TensorFlow.

A record is: length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data, little-endian.
Its data is a tf.train.Example message: a map from feature names to lists, here of int64.
"""

from __future__ import annotations

import glob
import hashlib
import mmap
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .atomic import write_atomically
from .crc32c import crc32c_of_many, masked, masked_crc32c
from .errors import DataError
from .example_message import MessageError, int64_features

FEATURES = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "next_sentence_labels",
)
# Each group must have one length: tokens, predictions, and one label an example.
_SAME_LENGTH = (FEATURES[:3], FEATURES[3:5])

_HEADER_BYTES = 12
_FOOTER_BYTES = 4
_DIGEST_BYTES = 16
_VERIFIED_AT_ONCE_BYTES = 4_000_000  # more records side by side gain nothing, and fall out of the caches


class TfRecordFile:
    """The examples of a TFRecord file, or of all files of a folder or glob in sorted order, by number.

    Opening reads all records and verifies their checksums, so that a damaged file is an error before training
    and not in the middle. With `index_folder` the result is kept there, for files of the same path, size and
    time of change; reading a record verifies its checksum again. It can be pickled, for worker processes:
    they don't scan again.
    Raises DataError for missing or empty files, for truncated ones, and for wrong checksums.
    """

    def __init__(self, source: str, *, index_folder: Optional[Path] = None) -> None:
        self.source = source
        self.paths = find_tfrecord_files(source)
        scans = [_scan_of(path, index_folder) for path in self.paths]
        # per file, where each record begins in bytes: int64 [records]
        self.offsets = [offsets for _, offsets in scans]
        self._digests = [digest for digest, _ in scans]
        # number of the first record of each file, and the number of all at the end
        self._first = np.concatenate([[0], np.cumsum([len(offsets) for offsets in self.offsets])])
        if len(self) == 0:
            raise DataError(f"no record in {source!r}: its {len(self.paths)} file(s) are empty.")
        self._maps: Dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def fingerprint(self) -> str:
        """A hex digest of the files' order and content, wherever they are."""
        return hashlib.sha256(b"tfrecord-1" + b"".join(self._digests)).hexdigest()

    def describe(self, index: int) -> str:
        """The record's number and place in its file, for a message."""
        file, number = self._place(index)
        return f"record {number} at byte {self.offsets[file][number]} of {str(self.paths[file])!r}"

    def _place(self, index: int) -> Tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return file, index - int(self._first[file])

    def read(self, index: int) -> Dict[str, np.ndarray]:
        """The six FEATURES of an example as stored: int64 [S] thrice, int64 [M] twice, int64 [1].

        In `masked_lm_ids` 0 means that the prediction isn't used. Other features of the record are ignored.
        Raises DataError, naming file and record, for a wrong checksum and a missing or ill-sized feature.
        """
        file, number = self._place(index)
        where = self.describe(index)
        try:
            features = int64_features(_data_at(self._map(file), int(self.offsets[file][number]), where))
        except MessageError as error:
            raise DataError(f"{where} is not a tf.train.Example: {error}. Write the file again.") from error
        return _checked(features, where)

    def _map(self, file: int) -> mmap.mmap:
        if file not in self._maps:
            self._maps[file] = _mapped(self.paths[file])
        return self._maps[file]


def find_tfrecord_files(source: str) -> List[Path]:
    """The file, the *.tfrecord of a folder (and below), or what the glob matches, sorted."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    pattern = str(path / "**" / "*.tfrecord") if path.is_dir() else str(path)
    matches = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    files = sorted(match for match in matches if match.is_file())
    if not files:
        raise DataError(
            f"no TFRecord file: looked for {pattern!r}. Check the path, or the pattern if it is one."
        )
    return files


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(
            f"cannot read {str(path)!r}: {error.strerror}. Check that you may read it."
        ) from error


def _data_at(content: mmap.mmap, offset: int, where: str) -> bytes:
    (length,) = struct.unpack_from("<Q", content, offset)
    start = offset + _HEADER_BYTES
    data = content[start : start + length]
    (stored,) = struct.unpack_from("<I", content, start + length)
    if masked_crc32c(data) != stored:
        raise DataError(_damaged(where))
    return data


def _damaged(where: str) -> str:
    return f"{where} is damaged: the checksum of its data is wrong. Copy or write the file again."


def _checked(features: Dict[str, np.ndarray], where: str) -> Dict[str, np.ndarray]:
    missing = [name for name in FEATURES if name not in features]
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
]  # a digest of all lengths and checksums; where records begin, int64 [records]


def _scan_of(path: Path, index_folder: Optional[Path]) -> _Scan:
    """A file's scan, from the folder where it is kept."""
    if index_folder is None:
        return _scanned(path)
    stat = path.stat()
    key = f"verified {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    index = Path(index_folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.index"
    if index.is_file():
        content = index.read_bytes()
        checksum, kept = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if checksum == _digest(kept):
            return kept[:_DIGEST_BYTES], np.frombuffer(kept[_DIGEST_BYTES:], dtype="<i8")
    digest, offsets = _scanned(path)
    kept = digest + offsets.astype("<i8").tobytes()
    index.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(index, _digest(kept) + kept)
    return digest, offsets


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _scanned(path: Path) -> _Scan:
    """Reads all of the file once. DataError names the first damaged record."""
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    offsets: List[int] = []
    if path.stat().st_size:
        with _mapped(path) as content:
            waiting: List[Tuple[int, int]] = []
            longest = 0
            for offset, length in _records(content, path):
                longest = max(longest, length)
                if waiting and longest * (len(waiting) + 1) > _VERIFIED_AT_ONCE_BYTES:
                    hasher.update(_verified(content, path, waiting, len(offsets) - len(waiting)))
                    waiting, longest = [], length
                waiting.append((offset, length))
                offsets.append(offset)
            hasher.update(_verified(content, path, waiting, len(offsets) - len(waiting)))
    return hasher.digest(), np.array(offsets, dtype=np.int64)


def _verified(content: mmap.mmap, path: Path, records: Sequence[Tuple[int, int]], first: int) -> bytes:
    """The lengths and stored checksums of records, whose data has these checksums; else DataError."""
    starts = [(offset + _HEADER_BYTES, length) for offset, length in records]
    found = masked(crc32c_of_many([content[start : start + length] for start, length in starts]))
    stored = b"".join(content[start + length : start + length + _FOOTER_BYTES] for start, length in starts)
    wrong = np.flatnonzero(found != np.frombuffer(stored, dtype="<u4"))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(_damaged(f"record {first + row} at byte {records[row][0]} of {str(path)!r}"))
    return np.array([length for _, length in records], dtype="<i8").tobytes() + stored


def _records(content: mmap.mmap, path: Path) -> Iterator[Tuple[int, int]]:
    """Offset and data length of each record."""
    size = len(content)
    offset = number = 0
    checked: Dict[bytes, bool] = {}  # few lengths are distinct, so that each is verified once
    while offset < size:
        header = content[offset : offset + _HEADER_BYTES]
        where = f"record {number} at byte {offset} of {str(path)!r}"
        if len(header) == _HEADER_BYTES:
            if header not in checked:
                checked[header] = masked_crc32c(header[:8]) == int.from_bytes(header[8:], "little")
            if not checked[header]:
                raise DataError(
                    f"{where} is damaged: the checksum of its length is wrong. Is it an uncompressed "
                    "TFRecord file? If so, copy or write it again."
                )
        length = int.from_bytes(header[:8], "little")
        end = offset + _HEADER_BYTES + length + _FOOTER_BYTES
        if len(header) < _HEADER_BYTES or end > size:
            raise DataError(
                f"{where} is cut off: the file ends at byte {size}, the record at byte {end} or later. "
                "Copy or write the file again."
            )
        yield offset, length
        offset = end
        number += 1
