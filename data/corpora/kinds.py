"""What a file holds, by its first bytes; a name decides only for CSV, TSV and damaged files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from pathlib import Path
from typing import IO, Any, Callable, Dict, Tuple

from ..files import DataError
from ..tfrecord import HEADER_BYTES, is_header

TEXT, TFRECORD = "text", "TFRecord"
JSON, CSV, TSV, PARQUET = "JSON", "CSV", "TSV", "Parquet"
ROWS = (JSON, CSV, TSV, PARQUET)  # files with a column of text
TEXT_SUFFIXES = (".txt", ".text")
_SUFFIXES = {".json": JSON, ".jsonl": JSON, ".ndjson": JSON, ".csv": CSV, ".tsv": TSV}

_HEAD_BYTES = 4096
# Name of a compression's files -> its first bytes and how to open it.
_COMPRESSIONS: Dict[str, Tuple[bytes, Callable[..., Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
    ".bz2": (b"BZh", bz2.open),
}
COMPRESSED = tuple(_COMPRESSIONS)
# Other formats that are mistaken for text, by their first bytes, and what to do.
_DECOMPRESS = "decompress it and give what it holds"
_ICONV = "convert it: iconv -f {0} -t utf-8 FILE > NEW_FILE"
_FORMATS: Tuple[Tuple[bytes, str, str], ...] = (
    (b"PAR1", PARQUET, ""),
    (b"ARROW1", "Arrow", "name its folder if `save_to_disk` wrote it"),
    (b"\xff\xff\xff\xff", "Arrow", "name its folder if `save_to_disk` wrote it"),
    (b"\xff\xfe\x00\x00", "UTF-32", _ICONV.format("utf-32")),
    (b"\xff\xfe", "UTF-16", _ICONV.format("utf-16")),
    (b"\xfe\xff", "UTF-16", _ICONV.format("utf-16")),
    (b"PK\x03\x04", "zip", "unzip it and give what it holds"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", _DECOMPRESS),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", _DECOMPRESS),
    (b"%PDF", "PDF", "extract its text, for example with pdftotext"),
    (b"\x89HDF", "HDF5", "export its text"),
    (b"SQLite format 3", "SQLite", "export its text"),
)
_MARKUP = re.compile(rb"\s*<(\?xml|!doctype|html|mediawiki|doc[ >]|tei[ >])", re.IGNORECASE)
_EXTRACT = "extract its text; for Wikipedia's dumps use hf:wikimedia/wikipedia, or WikiExtractor with --json"
_OBJECT = re.compile(rb'\s*(\[\s*)?\{\s*"(?:[^"\\]|\\.)*"\s*:')  # the beginning of JSON objects
_REMEDIES = {
    **{name: remedy for _, name, remedy in _FORMATS},
    "XML or HTML": _EXTRACT,
    "tar": "unpack it and give what it holds",
    "binary": "leave it out, or extract its text",
    "compressed TFRecord": _DECOMPRESS,
    "compressed Parquet": _DECOMPRESS,
}


def kind_of(file: Path) -> str:
    """TEXT, TFRECORD, one of ROWS, or the name of a format that isn't read. Raises OSError."""
    if file.suffix == ".tfrecord":  # it may be empty or damaged
        return TFRECORD
    compression = compression_of(file)
    try:
        with open_bytes(file, compression) as stream:
            head = stream.read(_HEAD_BYTES)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, ValueError):
        return TEXT  # damaged, which reading it reports
    except OSError:
        if compression == ".bz2":  # its error for damaged files
            return TEXT
        raise
    kind = _kind_of_bytes(head)
    if kind in (TFRECORD, PARQUET) and compression:
        return f"compressed {kind}"
    if kind == TEXT:
        named = _SUFFIXES.get(_plain_suffix(file))
        if named in (CSV, TSV) or (named == JSON and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")):
            return str(named)
    return kind


def _kind_of_bytes(head: bytes) -> str:
    if len(head) >= HEADER_BYTES and is_header(head[:HEADER_BYTES]):
        return TFRECORD
    for magic, name, _ in _FORMATS:
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "tar"
    if b"\0" in head:
        # Latin letters in UTF-16 without a byte order mark: every second byte is zero.
        halves = head[0::2], head[1::2]
        zeros = [half.count(0) / max(len(half), 1) for half in halves]
        return "UTF-16" if max(zeros) > 0.5 and min(zeros) < 0.1 else "binary"
    text = head[3:] if head.startswith(b"\xef\xbb\xbf") else head
    if _MARKUP.match(text):
        return "XML or HTML"
    return JSON if _OBJECT.match(text) else TEXT


def refuse(file: Path, kind: str) -> DataError:
    """The error for a file that is neither text nor rows of text."""
    return DataError(f"{str(file)!r} is no plain text but {kind}, by its first bytes: {_REMEDIES[kind]}.")


def is_text_file(file: Path) -> bool:
    """Whether the name is that of text: *.txt, *.text, or compressed and one of these or of no ending."""
    if file.suffix in COMPRESSED:
        return _plain_suffix(file) in ("", *TEXT_SUFFIXES)
    return file.suffix in TEXT_SUFFIXES


def _plain_suffix(file: Path) -> str:
    return (file.with_suffix("") if file.suffix in COMPRESSED else file).suffix.lower()


def compression_of(file: Path) -> str:
    """ ".gz", ".xz" or ".bz2" by the file's first bytes, or by its name if they are of none; else "".

    Raises OSError.
    """
    with file.open("rb") as stream:
        head = stream.read(8)
    for suffix, (magic, _) in _COMPRESSIONS.items():
        if head.startswith(magic) and (suffix != ".bz2" or head[3:4].isdigit()):
            return suffix
    return file.suffix if file.suffix in COMPRESSED else ""


def open_bytes(file: Path, compression: str) -> IO[bytes]:
    """Opens the file to read its decompressed content."""
    if not compression:
        return file.open("rb")
    opened: IO[bytes] = _COMPRESSIONS[compression][1](file, "rb")
    return opened
