"""Tokenisers kept in folders: one is used only if it is what was written there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Callable, Optional

from data.atomic import write_atomically
from data.errors import DataError
from data.locking import exclusive
from data.tokenizer import Tokenizer, load_tokenizer

_FINGERPRINT = "fingerprint.txt"  # the tokeniser's, written last


def keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokeniser for load_kept_tokenizer, over a damaged one if there is one. Raises OSError."""
    tokenizer.save(folder)
    write_atomically(folder / _FINGERPRINT, tokenizer.fingerprint().encode())


def load_kept_tokenizer(folder: Path) -> Optional[Tokenizer]:
    """The tokeniser kept in the folder; None if there is none or if a file of it is damaged or lost."""
    with contextlib.suppress(DataError, FileNotFoundError, UnicodeDecodeError):
        expected = (folder / _FINGERPRINT).read_text(encoding="utf-8")
        tokenizer = load_tokenizer(str(folder))
        if tokenizer.fingerprint() == expected:
            return tokenizer
    return None


def kept_or_made(folder: Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokeniser of the folder, made and kept there if need be; another process doing so is waited for."""
    tokenizer = load_kept_tokenizer(folder)
    if tokenizer is None:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock"):
            tokenizer = load_kept_tokenizer(folder)
            if tokenizer is None:
                tokenizer = make()
                keep_tokenizer(tokenizer, folder)
    return tokenizer
