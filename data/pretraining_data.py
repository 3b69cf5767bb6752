"""The options of pretraining data, and what is made of them."""

from __future__ import annotations

import dataclasses
from typing import Optional, Protocol

import numpy as np

from data.batches import SampleDataset
from data.errors import DataError
from data.shards import RECORD
from data.statistics import PretrainingStatistics
from data.tokenizer import Tokenizer, load_tokenizer

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
