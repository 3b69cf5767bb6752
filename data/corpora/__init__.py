"""Corpora: sources of pretraining text, opened with `open_corpus`."""

from __future__ import annotations

import difflib
import glob
import os
from pathlib import Path
from typing import List, Optional, Sequence

from ..files import DataError, local_path
from ..hugging_face import as_named
from .kinds import COMPRESSED, ROWS, TEXT_SUFFIXES, TFRECORD
from .python_docs import PythonDocsCorpus
from .rows import HuggingFaceCorpus, RowsCorpus
from .sources import find_files
from .text import Corpus, TextCorpus

__all__ = ["Corpus", "open_corpus", "tfrecord_notes"]

_LEGAL_FORMS = (
    "python-docs (the documentation in this Python installation), "
    "hf:NAME (a Hugging Face dataset, hf:NAME:CONFIGURATION, or hf:FOLDER for local data files), "
    "or a file of text or of rows with a text column (.txt, .jsonl, .csv, .tsv, .parquet; .gz, .xz and .bz2 "
    "too), a folder of them, a folder written by save_to_disk, or a glob"
)


def open_corpus(
    corpus: str,
    *,
    subset: Optional[str] = None,
    split: str = "train",
    text_column: str = "text",
    progress: bool = False,
) -> Corpus:
    """Opens a corpus: "python-docs", "hf:NAME", or a file, folder or glob of text or of rows.

    What a file holds is known by its first bytes. `subset` and `split` apply to Hugging Face datasets,
    `text_column` also to files of rows (JSON, CSV, TSV, Parquet). `progress`: show a bar. Raises DataError
    for an unknown form (listing the legal ones), for a path that matches no file, for files of another kind,
    and of two kinds.
    """
    if corpus == PythonDocsCorpus.name:
        return PythonDocsCorpus(progress)
    corpus = as_named(corpus)
    if corpus.startswith("hf:") and len(corpus) > len("hf:"):
        return HuggingFaceCorpus(str(local_path(corpus[3:])), subset, split, text_column)
    if corpus.endswith(".tfrecord"):
        raise _masked_already(corpus)
    if corpus and (_looks_like_path(corpus) or local_path(corpus).exists()):
        found = find_files(corpus)
        if found.kind == TFRECORD:
            raise _masked_already(corpus)
        if found.kind in ROWS:
            return RowsCorpus(corpus, found.kind, found.files, text_column, found.notes)
        return TextCorpus(corpus, found.files, found.notes)
    near = difflib.get_close_matches(
        corpus.lower(), [PythonDocsCorpus.name, *_entries_here()], n=1, cutoff=0.75
    )
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"unknown corpus {corpus!r}.{hint} Legal forms: {_LEGAL_FORMS}.")


def tfrecord_notes(corpus: str) -> Optional[Sequence[str]]:
    """None unless the corpus is a TFRecord file, or a folder or glob of them; then what the user should know
    of how it is read. Raises DataError for files of two kinds."""
    if corpus.endswith(".tfrecord") and not local_path(corpus).is_dir():
        return ()
    if corpus == PythonDocsCorpus.name or as_named(corpus).startswith("hf:"):
        return None
    if not corpus or not (_looks_like_path(corpus) or local_path(corpus).exists()):
        return None
    found = find_files(corpus)
    return found.notes if found.kind == TFRECORD else None


def _masked_already(corpus: str) -> DataError:
    return DataError(
        f"{corpus!r} has token ids that are already masked, not text. "
        "Use it as training data directly; a vocabulary or other examples need a text corpus."
    )


def _looks_like_path(corpus: str) -> bool:
    endings = (*TEXT_SUFFIXES, *COMPRESSED, ".jsonl", ".json", ".csv", ".tsv", ".parquet")
    return os.sep in corpus or glob.has_magic(corpus) or corpus.endswith(endings)


def _entries_here() -> List[str]:
    return sorted(entry.name for entry in Path().iterdir())
