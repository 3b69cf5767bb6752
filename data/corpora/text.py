"""Text files as a corpus: a blank line or the end of the file ends a document."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from pathlib import Path
from typing import Iterable, Iterator, List, Protocol, Sequence, Tuple

from ..files import DataError
from .kinds import compression_of, open_bytes


class Corpus(Protocol):
    """Documents in a fixed order, streamed: never all in memory, unless the corpus is small by design."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how it is read."""

    def fingerprint(self) -> str:
        """A hex digest that changes whenever the documents may have changed."""

    def documents(self) -> Iterator[str]:
        """Documents as text, one paragraph or sentence per line, without blank lines, never empty.

        Each call restarts and yields the same documents. Raises DataError if a source can't be read or if
        there is no document at all.
        """


def document_from_lines(lines: Iterable[str]) -> str:
    """Joins the non-blank lines, with runs of whitespace collapsed to one space; "" if all are blank."""
    normalised = (" ".join(line.split()) for line in lines)
    return "\n".join(line for line in normalised if line)


def refuse_empty(documents: Iterator[str], corpus: str, remedy: str) -> Iterator[str]:
    """Passes documents through; raises DataError at the end if there were none."""
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise DataError(f"corpus {corpus!r} has no text: everything in it is blank. {remedy}")


# A file without blank lines would be one document of any size; longer ones are split to bound memory.
MAX_DOCUMENT_CHARACTERS = 8_000_000
# Up to this size the content is hashed, so a copied or touched file keeps its fingerprint.
HASH_CONTENT_UP_TO_BYTES = 16_000_000


class TextCorpus:
    """The documents of UTF-8 text files, in the order given."""

    def __init__(self, name: str, files: Sequence[Path], notes: Sequence[str] = ()) -> None:
        self.name = name
        self.files = list(files)
        self.notes = notes

    def fingerprint(self) -> str:
        """Of each file's content (small files) or of its path, size and modification time (large ones)."""
        return fingerprint_of(self.files, "text-1")

    def documents(self) -> Iterator[str]:
        every = (document for file in self.files for document in _documents_of(file))
        return refuse_empty(every, self.name, "Give files that hold UTF-8 text.")


def fingerprint_of(files: Sequence[Path], how: str) -> str:
    """A hex digest of the files and of `how` they are read."""
    digest = hashlib.sha256(f"{how}\n".encode())
    for file in files:
        try:
            stat = file.stat()
            if stat.st_size <= HASH_CONTENT_UP_TO_BYTES:
                # Compression is part of the hash, because it determines how the bytes are read.
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                line = f"{content} {compression_of(file)}\n"
            else:
                line = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n"
        except OSError as error:
            raise unreadable(file, error) from error
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _lines_of(file: Path) -> Iterator[str]:
    number, compression = 0, ""
    try:
        compression = compression_of(file)
        with open_bytes(file, compression) as stream:
            rest = b""
            for raw in iter(lambda: stream.readline(MAX_DOCUMENT_CHARACTERS), b""):
                number += not rest
                piece, rest = _whole_words(rest + raw)
                yield piece.decode("utf-8-sig" if number == 1 else "utf-8")
            if rest:
                yield rest.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(file)!r} is not UTF-8 text: line {number} has byte 0x{error.object[error.start]:02x} "
            f"at its byte {error.start} ({error.reason}). Convert the file (iconv -t utf-8) or leave it out."
        ) from error
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{str(file)!r} is a damaged or cut-off {compression} file: {error}, after line {number}. "
            "Copy or download it again."
        ) from error
    except OSError as error:
        if compression == ".bz2" and error.errno is None:
            raise DataError(
                f"{str(file)!r} is a damaged or cut-off .bz2 file: {error}, after line {number}. "
                "Copy or download it again."
            ) from error
        raise unreadable(file, error) from error


def _whole_words(raw: bytes) -> Tuple[bytes, bytes]:
    """A line, or the part of an endless one that ends before its last space; and the rest, if any."""
    if raw.endswith(b"\n") or len(raw) < MAX_DOCUMENT_CHARACTERS:
        return raw, b""
    cut = raw.rfind(b" ") + 1
    if not cut:  # no space anywhere: between two characters of UTF-8
        starts = (n for n in range(len(raw) - 1, len(raw) - 5, -1) if raw[n] & 0xC0 != 0x80)
        cut = next(starts, len(raw))
    return raw[:cut], raw[cut:]


def unreadable(file: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(f"cannot read {str(file)!r}: {reason}. Check that it exists and that you may read it.")


def _documents_of(file: Path) -> Iterator[str]:
    lines: List[str] = []
    characters = 0
    for line in _lines_of(file):
        blank = line.isspace() or not line
        if not blank:
            lines.append(line)
            characters += len(line)
        if lines and (blank or characters >= MAX_DOCUMENT_CHARACTERS):
            yield document_from_lines(lines)
            lines, characters = [], 0
    if lines:
        yield document_from_lines(lines)
