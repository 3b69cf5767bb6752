"""Text corpora: files, where a blank line or the end of file ends a document; Hugging Face datasets."""

from __future__ import annotations

import glob
import gzip
import hashlib
import lzma
import os
import zlib
from pathlib import Path
from typing import IO, Any, Callable, Iterable, Iterator, List, Optional, Protocol, Sequence, Tuple, Union

from ..files import DataError


class Corpus(Protocol):
    """Documents in a fixed order, streamed: never all in memory, unless the corpus is small by design."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

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

_COMPRESSED = (".gz", ".xz")
_TEXT_SUFFIXES = ("", ".txt", ".text")


class TextCorpus:
    """The documents of UTF-8 text files, in the order given."""

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name = name
        self.files = list(files)

    def fingerprint(self) -> str:
        """Of each file's content (small files) or of its path, size and modification time (large ones)."""
        digest = hashlib.sha256(b"text-1\n")
        for file in self.files:
            try:
                stat = file.stat()
                if stat.st_size <= HASH_CONTENT_UP_TO_BYTES:
                    # Compression is part of the hash, because it determines how the bytes are read.
                    content = hashlib.sha256(file.read_bytes()).hexdigest()
                    line = f"{content} {_compression(file)}\n"
                else:
                    line = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n"
            except OSError as error:
                raise _unreadable(file, error) from error
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        every = (document for file in self.files for document in _documents_of(file))
        return refuse_empty(every, self.name, "Give files that hold UTF-8 text.")


def find_text_files(source: str) -> List[Path]:
    """The files of a path, a folder (searched recursively) or a glob, sorted.

    In a folder these are text files: *.txt, *.txt.gz, *.txt.xz and compressed files without another suffix
    (articles.gz), except hidden ones. A file or glob selects exactly what it matches.
    Raises DataError if nothing is found.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(_text_files_below(path))
        if not files:
            raise DataError(
                f"no text file in folder {str(path)!r} or below: looked for *.txt, *.txt.gz and *.txt.xz. "
                "Use a glob if their names are different."
            )
        return files
    matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    files = sorted(match for match in matches if match.is_file())
    if not files:
        where = f"{str(path)!r}" if path.is_absolute() else f"{str(path)!r} in {str(Path.cwd())!r}"
        raise DataError(f"no file matches {where}. Check the path, or the pattern if it is one.")
    return files


def _text_files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            inner = path.with_suffix("") if path.suffix in _COMPRESSED else path
            is_text = inner.suffix in (_TEXT_SUFFIXES if path.suffix in _COMPRESSED else _TEXT_SUFFIXES[1:])
            if is_text and not name.startswith(".") and path.is_file():
                yield path


def _compression(file: Path) -> str:
    return file.suffix if file.suffix in _COMPRESSED else ""


def _open_bytes(file: Path) -> Union[IO[bytes], gzip.GzipFile, lzma.LZMAFile]:
    if file.suffix == ".gz":
        return gzip.open(file, "rb")
    if file.suffix == ".xz":
        return lzma.open(file, "rb")
    return file.open("rb")


def _lines_of(file: Path) -> Iterator[str]:
    number = 0
    try:
        with _open_bytes(file) as stream:
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
            f"{str(file)!r} is a damaged or cut-off {file.suffix} file: {error}, after line {number}. "
            "Copy or download it again."
        ) from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _whole_words(raw: bytes) -> Tuple[bytes, bytes]:
    """A line, or the part of an endless one that ends before its last space; and the rest, if any."""
    if raw.endswith(b"\n") or len(raw) < MAX_DOCUMENT_CHARACTERS:
        return raw, b""
    cut = raw.rfind(b" ") + 1
    if not cut:  # no space anywhere: between two characters of UTF-8
        starts = (n for n in range(len(raw) - 1, len(raw) - 5, -1) if raw[n] & 0xC0 != 0x80)
        cut = next(starts, len(raw))
    return raw[:cut], raw[cut:]


def _unreadable(file: Path, error: OSError) -> DataError:
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


class HuggingFaceCorpus:
    """A Hugging Face dataset with a text column, streamed; or a local folder of data files.

    Each row is a document; blank lines in it separate paragraphs.
    """

    def __init__(self, dataset: str, subset: Optional[str], split: str, text_column: str) -> None:
        self.name = f"hf:{dataset}"
        self.dataset = dataset
        self.subset = subset
        self.split = split
        self.text_column = text_column

    def fingerprint(self) -> str:
        """Of name, subset, split, column and the state of the files as reported by `datasets`."""
        builder = self._ask(lambda datasets: datasets.load_dataset_builder(self.dataset, self.subset))
        parts = (self.dataset, self.subset, self.split, self.text_column, builder.hash, builder.config.name)
        return hashlib.sha256(f"hugging-face-1 {parts!r} {builder.config.version}".encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        every = (document for document in map(document_from_lines, self._texts()) if document)
        return refuse_empty(every, self.name, f"Is split {self.split!r} empty?")

    def _texts(self) -> Iterator[Any]:
        rows = iter(
            self._ask(
                lambda datasets: datasets.load_dataset(
                    self.dataset, self.subset, split=self.split, streaming=True
                )
            )
        )
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # the library's readers raise errors of many types
                raise self._failure(error) from error
            if self.text_column not in row:
                raise DataError(
                    f"{self.name} has no column {self.text_column!r}; its columns are: {', '.join(row)}. "
                    "Set text_column to the one that holds the text."
                )
            text = row[self.text_column]
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"column {self.text_column!r} of {self.name} holds {type(text).__name__}, not text; "
                    f"its columns are: {', '.join(row)}. Set text_column to the one that holds the text."
                )
            yield (text or "").splitlines()

    def _ask(self, load: Callable[[Any], Any]) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"{self.name} needs the package `datasets`: {error}. Run `pip install datasets`."
            ) from error
        try:
            return load(datasets)
        except Exception as error:  # names, networks, formats and splits raise errors of many types
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> DataError:
        subset = "" if self.subset is None else f", subset {self.subset!r}"
        return DataError(
            f"cannot read {self.name}{subset}, split {self.split!r}: {type(error).__name__}: {error}. "
            "Check name, subset and split, and the network (or give hf: a local folder of data files)."
        )
