"""Any Hugging Face dataset with a text column, streamed; a local folder of data files works the same."""

from __future__ import annotations

import hashlib
from typing import Any, Iterator, Optional

from ..errors import DataError
from .corpus import document_from_lines, refuse_empty


class HuggingFaceCorpus:
    """Each row is a document; blank lines inside it only part its paragraphs."""

    def __init__(self, dataset: str, subset: Optional[str], split: str, text_column: str) -> None:
        self.name = f"hf:{dataset}"
        self.dataset = dataset
        self.subset = subset
        self.split = split
        self.text_column = text_column

    def fingerprint(self) -> str:
        """Of name, subset, split, column and what `datasets` knows of the files' state."""
        builder = self._ask("load_dataset_builder", self.dataset, self.subset)
        parts = (self.dataset, self.subset, self.split, self.text_column, builder.hash, builder.config.name)
        return hashlib.sha256(f"hugging-face-1 {parts!r} {builder.config.version}".encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        every = (document for document in map(document_from_lines, self._texts()) if document)
        return refuse_empty(every, self.name, f"Is split {self.split!r} empty?")

    def _texts(self) -> Iterator[Any]:
        rows = iter(self._ask("load_dataset", self.dataset, self.subset, split=self.split, streaming=True))
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # the library's readers raise whatever their formats do
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

    def _ask(self, function: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"{self.name} needs the package `datasets`: {error}. Run `pip install datasets`."
            ) from error
        try:
            return getattr(datasets, function)(*arguments, **keywords)
        except Exception as error:  # names, networks, formats and splits fail with many types
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> DataError:
        subset = "" if self.subset is None else f", subset {self.subset!r}"
        return DataError(
            f"cannot read {self.name}{subset}, split {self.split!r}: {type(error).__name__}: {error}. "
            "Check name, subset and split, and the network (or give hf: a local folder of data files)."
        )
