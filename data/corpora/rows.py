"""Rows with a column of text: Hugging Face datasets, and files of JSON, CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import lzma
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

from ..files import DataError
from ..hugging_face import cache_options, is_saved, library, parts_of, rows_of
from .kinds import CSV, JSON, PARQUET, TSV, compression_of, open_bytes
from .text import document_from_lines, fingerprint_of, refuse_empty

# Kind of file -> builder of `datasets` and its options. Texts such as "NA", "null" and "None" are texts.
_BUILDERS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    JSON: ("json", {}),
    CSV: ("csv", {"keep_default_na": False}),
    TSV: ("csv", {"keep_default_na": False, "sep": "\t"}),
    PARQUET: ("parquet", {}),
}


class HuggingFaceCorpus:
    """A Hugging Face dataset with a text column, streamed; or a local folder of data files.

    Each row is a document; blank lines in it separate paragraphs.
    """

    notes: Sequence[str] = ()

    def __init__(self, dataset: str, subset: Optional[str], split: str, text_column: str) -> None:
        self.name = f"hf:{dataset}"
        self.dataset, self.subset = parts_of(dataset, subset)
        self.split = split
        self.text_column = text_column

    def fingerprint(self) -> str:
        """Of name, subset, split, column and the files' state (for the hub's, what `datasets` reports)."""
        parts: Tuple[Any, ...] = (self.dataset, self.subset, self.split, self.text_column)
        if is_saved(self.dataset):
            rows = self._ask(self._rows)
            return hashlib.sha256(f"saved-1 {parts!r} {rows._fingerprint}".encode()).hexdigest()
        builder = self._ask(
            lambda datasets: datasets.load_dataset_builder(
                self.dataset, self.subset, **cache_options(datasets, self.dataset)
            )
        )
        parts = (*parts, builder.hash, builder.config.name)
        if Path(self.dataset).is_dir():
            # The library's hash of a named configuration doesn't depend on what the folder's files hold.
            files = (builder.config.data_files or {}).values()
            local = [Path(file) for part in files for file in map(str, part) if Path(file).is_file()]
            return fingerprint_of(local, f"hugging-face-2 {parts!r} {builder.config.version}")
        return hashlib.sha256(f"hugging-face-1 {parts!r} {builder.config.version}".encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        every = (document for document in map(document_from_lines, self._texts()) if document)
        return refuse_empty(every, self.name, f"Is split {self.split!r} empty?")

    def _rows(self, datasets: Any) -> Any:
        return rows_of(datasets, self.dataset, self.subset, self.split, streaming=True)

    def _texts(self) -> Iterator[Any]:
        rows = iter(self._ask(self._rows))
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
        datasets = library(self.name)
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


class RowsCorpus(HuggingFaceCorpus):
    """The rows of files of one kind, in the order given."""

    def __init__(
        self, name: str, kind: str, files: Sequence[Path], text_column: str, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(name, None, "train", text_column)
        self.name, self.files, self.kind = name, list(files), kind
        read = f"{name} is read as rows of {kind}, with the text in column {text_column!r} (text_column)"
        self.notes = (*notes, read)

    def fingerprint(self) -> str:
        """Of the files, their kind and the column."""
        how = "rows-2" if self.kind in (CSV, TSV) else "rows-1"
        return fingerprint_of(self.files, f"{how} {self.kind} {self.text_column}")

    def documents(self) -> Iterator[str]:
        for file in self.files:
            self._refuse_hidden_compression(file)
        if self.kind in (CSV, TSV):
            for file in self.files:
                self._refuse_more_cells_than_columns(file)
        return super().documents()

    def _refuse_hidden_compression(self, file: Path) -> None:
        """`datasets` goes by the name."""
        try:
            compression = compression_of(file)
        except OSError:
            return  # which reading it reports
        if file.suffix != compression and compression:
            raise DataError(
                f"{str(file)!r} is compressed: its name must end in {compression} for its rows to be read. "
                f"Rename it: mv {file.name} {file.name}{compression}"
            )

    def _refuse_more_cells_than_columns(self, file: Path) -> None:
        """Where the first row has more cells than the header, pandas takes the first one for a row's name,
        and the text would be lost without an error."""
        separator = _BUILDERS[self.kind][1].get("sep", ",")
        try:
            with open_bytes(file, compression_of(file)) as stream:
                lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
                first = list(itertools.islice(csv.reader(lines, delimiter=separator), 2))
        except (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error):
            return  # which reading it reports
        if len(first) == 2 and len(first[1]) > len(first[0]):
            raise DataError(
                f"{str(file)!r}: its first row has {len(first[1])} cells, but the header names "
                f"{len(first[0])} column(s): put texts that contain {separator!r} into double quotes."
            )

    def _rows(self, datasets: Any) -> Any:
        builder, options = _BUILDERS[self.kind]
        files = [str(file) for file in self.files]
        return rows_of(datasets, builder, None, self.split, streaming=True, data_files=files, **options)

    def _failure(self, error: Exception) -> DataError:
        cause = "" if error.__cause__ is None else f": {error.__cause__}"
        return DataError(
            f"cannot read {self.name} as {self.kind}: {type(error).__name__}: {error}{cause}. Use undamaged "
            "files whose rows all have the same columns."
        )
