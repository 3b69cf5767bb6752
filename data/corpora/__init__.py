"""Corpora: sources of pretraining text, opened with `open_corpus`."""

from __future__ import annotations

import difflib
import glob
import os
from pathlib import Path
from typing import List, Optional

from ..files import DataError
from .python_docs import PythonDocsCorpus
from .text import Corpus, HuggingFaceCorpus, TextCorpus, find_text_files

__all__ = ["Corpus", "open_corpus"]

_LEGAL_FORMS = (
    "python-docs (the documentation in this Python installation), "
    "hf:NAME (a Hugging Face dataset, or hf:FOLDER for local data files), "
    "or a text file (.txt, .gz, .xz), a folder of them, or a glob"
)


def open_corpus(
    corpus: str, *, subset: Optional[str] = None, split: str = "train", text_column: str = "text"
) -> Corpus:
    """Opens a corpus: "python-docs", "hf:NAME", or a text file, folder or glob.

    `subset`, `split` and `text_column` apply to Hugging Face datasets only.
    Raises DataError for an unknown form (listing the legal ones) and for a path that matches no file.
    """
    if corpus == PythonDocsCorpus.name:
        return PythonDocsCorpus()
    if corpus.startswith("hf:") and len(corpus) > len("hf:"):
        return HuggingFaceCorpus(str(Path(corpus[3:]).expanduser()), subset, split, text_column)
    if corpus.endswith(".tfrecord"):
        raise DataError(
            f"{corpus!r} has token ids that are already masked, not text. "
            "Use it as training data directly; a vocabulary or other examples need a text corpus."
        )
    if corpus and (_looks_like_path(corpus) or Path(corpus).exists()):
        return TextCorpus(corpus, find_text_files(corpus))
    near = difflib.get_close_matches(
        corpus.lower(), [PythonDocsCorpus.name, *_entries_here()], n=1, cutoff=0.75
    )
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"unknown corpus {corpus!r}.{hint} Legal forms: {_LEGAL_FORMS}.")


def _looks_like_path(corpus: str) -> bool:
    return os.sep in corpus or glob.has_magic(corpus) or corpus.endswith((".txt", ".gz", ".xz"))


def _entries_here() -> List[str]:
    return sorted(entry.name for entry in Path().iterdir())
