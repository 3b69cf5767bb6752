"""What a text corpus was prepared into, found again by its identity, without the corpus.

A run that resumes has to train on the very data that it started with, and at once: the corpus may be far
away (a hub without a network), slow to gather, or gone. So the cache folder has prepared/IDENTITY: the
tokeniser and the names of the folders of shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Callable, Optional, Protocol

import numpy as np

from data.batches import SampleDataset
from data.shards import RECORD, load_manifest
from data.tokenizer import Tokenizer, load_tokenizer

from .dataset import PretrainingStatistics
from .files import DataError, exclusive, write_atomically

# Tokenisers kept in folders: one is used only if it is what was written there.

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


EXAMPLES = "examples"  # the folder of all folders of shards, in the cache folder
_RECORD = "shards.json"


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """train, validation: names of folders of shards, the same where nothing but documents are held out."""

    tokenizer: Tokenizer
    train: str
    validation: Optional[str]

    @property
    def identity(self) -> str:
        """The same wherever the corpus' fingerprint, the vocabulary and the parameters are the same."""
        named = json.dumps([self.train, self.validation, self.tokenizer.fingerprint()])
        return "text-" + hashlib.blake2b(named.encode(), digest_size=16).hexdigest()


def prepared_folder(identity: str, cache_folder: Path) -> Path:
    return cache_folder / "prepared" / identity


def record_prepared(prepared: PreparedText, cache_folder: Path) -> None:
    """Makes it known to find_prepared. Raises OSError."""
    if find_prepared(prepared.identity, cache_folder) is not None:
        return
    folder = prepared_folder(prepared.identity, cache_folder)
    keep_tokenizer(prepared.tokenizer, folder)
    shards = {"train": prepared.train, "validation": prepared.validation}
    write_atomically(folder / _RECORD, json.dumps(shards).encode())


def find_prepared(identity: str, cache_folder: Path) -> Optional[PreparedText]:
    """What has this identity, None if it, its tokeniser or its shards aren't there (any more)."""
    folder = prepared_folder(identity, cache_folder)
    tokenizer = load_kept_tokenizer(folder)
    if tokenizer is None:
        return None
    try:
        shards = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        prepared = PreparedText(tokenizer, shards["train"], shards["validation"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    if prepared.identity != identity:
        return None
    for name in {prepared.train, prepared.validation or prepared.train}:
        if load_manifest(cache_folder / EXAMPLES / name) is None:
            return None
    return prepared


# The options of pretraining data, and what is made of them.

TRAINED_TOKENIZER = "train"
_SHORTEST_SEQUENCE = 8
# A shard's record has 16 bits for the length of a segment.
_LONGEST_SEQUENCE = int(np.iinfo(RECORD["length_a"]).max)


@dataclasses.dataclass(frozen=True)
class PretrainingDataOptions:
    """corpus: see open_corpus, or TFRecord files (a .tfrecord file, a glob, a folder of them).

    validation_corpus: if given, validation_fraction is ignored; of a Hugging Face dataset its split
    "validation". tokenizer: "train" trains a vocabulary of vocab_size on the corpus, otherwise see
    load_tokenizer. preprocessing_workers: processes; None for all cores, 0 for none.
    """

    corpus: str
    sequence_length: int
    mask_tokens: int
    vocab_size: int
    tokenizer: str = TRAINED_TOKENIZER
    corpus_subset: Optional[str] = None
    corpus_split: str = "train"
    text_column: str = "text"
    validation_corpus: Optional[str] = None
    validation_fraction: float = 0.05
    lowercase: bool = True
    masked_lm_probability: float = 0.15
    dynamic_masking: bool = True
    whole_word_masking: bool = False
    short_sequence_probability: float = 0.1
    seed: int = 42
    preprocessing_workers: Optional[int] = None

    def __post_init__(self) -> None:
        for name in ("corpus", "validation_corpus", "tokenizer"):
            if getattr(self, name) == "":
                raise DataError(f"{name} is empty: name one, for the current folder say '.'")
        if not _SHORTEST_SEQUENCE <= self.sequence_length <= _LONGEST_SEQUENCE:
            raise DataError(
                f"sequence_length {self.sequence_length} is outside of {_SHORTEST_SEQUENCE} to "
                f"{_LONGEST_SEQUENCE}"
            )
        if not 1 <= self.mask_tokens <= self.sequence_length:
            raise DataError(
                f"mask_tokens {self.mask_tokens} is outside of 1 to {self.sequence_length} (sequence_length)"
            )
        for name in ("masked_lm_probability", "short_sequence_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} {getattr(self, name)} is outside of 0 to 1")
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"validation_fraction {self.validation_fraction} is outside of 0 to below 1")
        if self.preprocessing_workers is not None and self.preprocessing_workers < 0:
            raise DataError(
                f"preprocessing_workers {self.preprocessing_workers} is negative: 0 works without"
            )


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """validation: unshuffled, static masks; None without one. tokenizer: None if TFRecords name none.

    identity: names the prepared data and the vocabulary; a checkpoint keeps it for the run that resumes.
    """

    train: SampleDataset
    validation: Optional[SampleDataset]
    tokenizer: Optional[Tokenizer]
    statistics: PretrainingStatistics
    identity: str


class VocabularyOptions(Protocol):
    """Which vocabulary, and for how many token ids there is room."""

    @property
    def tokenizer(self) -> str: ...

    @property
    def lowercase(self) -> bool: ...

    @property
    def vocab_size(self) -> int: ...


def named_tokenizer(options: VocabularyOptions) -> Tokenizer:
    tokenizer = load_tokenizer(options.tokenizer, lowercase=options.lowercase)
    refuse_larger_vocabulary(tokenizer, options)
    return tokenizer


def refuse_larger_vocabulary(tokenizer: Tokenizer, options: VocabularyOptions) -> None:
    excess = tokenizer.vocab_size - options.vocab_size
    if excess > 0:
        raise DataError(
            f"the vocabulary {options.tokenizer} has {tokenizer.vocab_size} tokens, {excess} more than "
            f"vocab_size {options.vocab_size}: set vocab_size to {tokenizer.vocab_size}"
        )
