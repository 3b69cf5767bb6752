"""The cache of prepared text: tokenisers and shards, looked up by identity, without the corpus.

A resumed run must train on exactly the same data, and start at once: the corpus may be remote, slow to read,
or deleted. So the cache folder has prepared/IDENTITY: the tokeniser and the names of the shard folders. A
cached tokeniser is used only if its files match its fingerprint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Callable, Optional

from .files import DataError, exclusive, write_atomically
from .json_files import read_json
from .shards import load_manifest
from .tokenizer import Tokenizer, load_tokenizer

EXAMPLES = "examples"  # subfolder of the cache folder with all shard folders
_RECORD = "shards.json"
_FOLDER = re.compile(r"pairs-[0-9a-f]{32}")
_FINGERPRINT = "fingerprint.txt"  # of the tokeniser, written last


def keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokeniser for load_kept_tokenizer, replacing a damaged one. Raises OSError."""
    tokenizer.save(folder)
    write_atomically(folder / _FINGERPRINT, tokenizer.fingerprint().encode())


def load_kept_tokenizer(folder: Path) -> Optional[Tokenizer]:
    """The tokeniser stored in the folder; None if there is none or a file is damaged or missing."""
    with contextlib.suppress(DataError, FileNotFoundError, UnicodeDecodeError):
        expected = (folder / _FINGERPRINT).read_text(encoding="utf-8")
        tokenizer = load_tokenizer(str(folder))
        if tokenizer.fingerprint() == expected:
            return tokenizer
    return None


def kept_or_made(folder: Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokeniser stored in the folder, made if necessary; waits for another process that is making it."""
    tokenizer = load_kept_tokenizer(folder)
    if tokenizer is None:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock"):
            tokenizer = load_kept_tokenizer(folder)
            if tokenizer is None:
                tokenizer = make()
                keep_tokenizer(tokenizer, folder)
    return tokenizer


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """train, validation: names of shard folders; they are the same if validation documents are held out."""

    tokenizer: Tokenizer
    train: str
    validation: Optional[str]

    @property
    def identity(self) -> str:
        """Equal if the corpus's fingerprint, the vocabulary and the parameters are equal."""
        named = json.dumps([self.train, self.validation, self.tokenizer.fingerprint()])
        return "text-" + hashlib.blake2b(named.encode(), digest_size=16).hexdigest()


def prepared_folder(identity: str, cache_folder: Path) -> Path:
    return cache_folder / "prepared" / identity


def record_prepared(prepared: PreparedText, cache_folder: Path) -> None:
    """Registers prepared text for find_prepared. Raises OSError."""
    if find_prepared(prepared.identity, cache_folder) is not None:
        return
    folder = prepared_folder(prepared.identity, cache_folder)
    keep_tokenizer(prepared.tokenizer, folder)
    shards = {"train": prepared.train, "validation": prepared.validation}
    write_atomically(folder / _RECORD, json.dumps(shards).encode())


def find_prepared(identity: str, cache_folder: Path) -> Optional[PreparedText]:
    """The prepared text with this identity; None if it, its tokeniser or its shards don't exist."""
    folder = prepared_folder(identity, cache_folder)
    tokenizer = load_kept_tokenizer(folder)
    if tokenizer is None:
        return None
    try:
        shards = read_json(folder / _RECORD, most_bytes=1 << 16)
        prepared = PreparedText(tokenizer, shards["train"], shards["validation"])
    except (DataError, TypeError, KeyError):
        return None
    if not all(
        _FOLDER.fullmatch(str(name)) for name in (prepared.train, prepared.validation or prepared.train)
    ):
        return None
    if prepared.identity != identity:
        return None
    for name in {prepared.train, prepared.validation or prepared.train}:
        if load_manifest(cache_folder / EXAMPLES / name) is None:
            return None
    return prepared
