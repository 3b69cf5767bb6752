"""Pretraining data from TFRecord files, which are used where they lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Optional

from data.errors import DataError
from data.prepared import prepared_folder
from data.pretraining_data import (
    TRAINED_TOKENIZER,
    PretrainingData,
    PretrainingDataOptions,
    named_tokenizer,
)
from data.pretraining_tfrecord import TfRecordPretrainingDataset
from data.statistics import PretrainingStatistics, SplitStatistics
from data.tfrecord import TfRecordFile
from data.tokenizer import Tokenizer
from data.vocabulary_cache import kept_or_made, load_kept_tokenizer


def is_tfrecord(corpus: str) -> bool:
    if corpus.endswith(".tfrecord"):
        return True
    folder = Path(corpus).expanduser()
    return folder.is_dir() and any(folder.rglob("*.tfrecord"))


def prepare_tfrecords(
    options: PretrainingDataOptions, cache_folder: Path, identity: Optional[str]
) -> PretrainingData:
    """Datasets over the records of files. The tokeniser is kept with the identity, as for text."""
    tokenizer: Optional[Tokenizer] = None
    notes = [f"{options.corpus} is masked already: its masks and lengths are used as they are"]
    if options.tokenizer == TRAINED_TOKENIZER:
        notes.append(
            "no tokeniser: token ids have no text to train a vocabulary on; name the one that was used"
        )
    else:
        if identity is not None:
            tokenizer = load_kept_tokenizer(prepared_folder(identity, cache_folder))
        if tokenizer is None:
            tokenizer = named_tokenizer(options)

    def dataset(
        records: TfRecordFile, held_out: Optional[bool], for_training: bool
    ) -> TfRecordPretrainingDataset:
        return TfRecordPretrainingDataset(
            records,
            sequence_length=options.sequence_length,
            mask_tokens=options.mask_tokens,
            vocab_size=options.vocab_size,
            seed=options.seed,
            shuffle=for_training,
            validation_fraction=options.validation_fraction,
            held_out=held_out,
        )

    indices = cache_folder / "tfrecord-indices"
    records = TfRecordFile(options.corpus, index_folder=indices)
    named = [records.fingerprint(), tokenizer and tokenizer.fingerprint()]
    validation: Optional[TfRecordPretrainingDataset] = None
    if options.validation_corpus is not None:
        if not is_tfrecord(options.validation_corpus):
            raise DataError(
                f"the corpus {options.corpus} is TFRecord files, so validation_corpus must be too, unlike "
                f"{options.validation_corpus}; without one, validation_fraction holds out records"
            )
        train = dataset(records, None, True)
        validation_records = TfRecordFile(options.validation_corpus, index_folder=indices)
        validation = dataset(validation_records, None, False)
        named.append(validation_records.fingerprint())
    elif options.validation_fraction > 0:
        train = dataset(records, False, True)
        validation = dataset(records, True, False)
        for part, change in ((validation, "raise"), (train, "lower")):
            if part.num_examples == 0:
                raise DataError(
                    f"{'no record was held out' if change == 'raise' else 'no record is left to train on'}: "
                    f"{options.corpus} has {len(records)} record(s), and validation_fraction is "
                    f"{options.validation_fraction}: {change} it or give a validation_corpus"
                )
        named.append(str(options.validation_fraction))
    else:
        train = dataset(records, None, True)
    statistics = PretrainingStatistics(
        options.corpus,
        tokenizer.vocab_size if tokenizer else None,
        SplitStatistics(train.num_examples),
        SplitStatistics(validation.num_examples) if validation else None,
        tuple(notes),
    )
    found = "tfrecord-" + hashlib.blake2b(json.dumps(named).encode(), digest_size=16).hexdigest()
    if tokenizer is not None:
        kept = tokenizer
        kept_or_made(prepared_folder(found, cache_folder), lambda: kept)
    return PretrainingData(train, validation, tokenizer, statistics, found)
