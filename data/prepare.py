"""Pretraining data from a corpus of text: its vocabulary and shards, and the datasets over them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from data.corpora import Corpus, open_corpus
from data.masking import Masker
from data.prepared import EXAMPLES, PreparedText, find_prepared, prepared_folder, record_prepared
from data.shards import load_manifest, open_shards
from data.tfrecord import TfRecordFile
from data.tokenizer import Tokenizer, train_tokenizer

from .dataset import PretrainingDataset, PretrainingStatistics, SplitStatistics, TfRecordPretrainingDataset
from .files import DataError
from .make_shards import PairParameters, prepare_shards
from .prepared import (
    TRAINED_TOKENIZER,
    PretrainingData,
    PretrainingDataOptions,
    kept_or_made,
    load_kept_tokenizer,
    named_tokenizer,
    refuse_larger_vocabulary,
)
from .shards import TRAIN, VALIDATION

_NOT_RANDOM = (
    "its training part has one document: no segment can come from another one, so every next-sentence label "
    "is 0 and next-sentence prediction learns nothing; blank lines separate documents"
)


def prepare_text(options: PretrainingDataOptions, cache_folder: Path, progress: bool) -> PreparedText:
    """Vocabulary and shards of the corpora, made unless the cache folder has them."""
    corpus = open_corpus(
        options.corpus,
        subset=options.corpus_subset,
        split=options.corpus_split,
        text_column=options.text_column,
    )
    validation_corpus = _open_validation_corpus(options)
    if options.tokenizer == TRAINED_TOKENIZER:
        tokenizer = _trained_tokenizer(corpus, options, cache_folder / "vocabularies", progress)
    else:
        tokenizer = named_tokenizer(options)

    def prepare(source: Corpus) -> str:
        return prepare_shards(
            source,
            tokenizer,
            _pair_parameters(options),
            cache_folder / EXAMPLES,
            workers=options.preprocessing_workers,
            progress=progress,
        ).name

    train = prepare(corpus)
    validation = train if options.validation_fraction > 0 else None
    if validation_corpus is not None:
        validation = prepare(validation_corpus)
    prepared = PreparedText(tokenizer, train, validation)
    record_prepared(prepared, cache_folder)
    return prepared


def _pair_parameters(options: PretrainingDataOptions) -> PairParameters:
    return PairParameters(
        sequence_length=options.sequence_length,
        short_sequence_probability=options.short_sequence_probability,
        validation_fraction=options.validation_fraction if options.validation_corpus is None else 0.0,
        seed=options.seed,
    )


def open_text(prepared: PreparedText, options: PretrainingDataOptions, cache_folder: Path) -> PretrainingData:
    """Datasets over the shards. DataError where these options can't go with them."""
    tokenizer = prepared.tokenizer
    refuse_larger_vocabulary(tokenizer, options)
    folder = cache_folder / EXAMPLES / prepared.train
    _refuse_other_parameters(folder, options)
    train, train_counts = _open_split(folder, TRAIN, options, tokenizer, for_training=True)
    validation: Optional[PretrainingDataset] = None
    validation_counts: Optional[SplitStatistics] = None
    if prepared.validation is not None:
        validation, validation_counts = _open_split(
            cache_folder / EXAMPLES / prepared.validation,
            VALIDATION if options.validation_corpus is None else TRAIN,
            options,
            tokenizer,
            for_training=False,
        )
    _require_both_parts(options, train_counts, validation_counts)
    notes = (f"{options.corpus}: {_NOT_RANDOM}",) if train_counts.documents == 1 else ()
    # Loader workers are forked, and the tokenizers library warns in each unless told what to do there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return PretrainingData(
        train,
        validation,
        tokenizer,
        PretrainingStatistics(options.corpus, tokenizer.vocab_size, train_counts, validation_counts, notes),
        prepared.identity,
    )


def _require_both_parts(
    options: PretrainingDataOptions, train: SplitStatistics, validation: Optional[SplitStatistics]
) -> None:
    """DataError if the corpus' division into training and held-out documents left one part empty."""
    if validation is None:
        return
    if options.validation_corpus is not None:
        if validation.examples == 0:
            raise DataError(
                f"the validation corpus {options.validation_corpus} gives no example: it has "
                f"{validation.documents} document(s) of {validation.tokens} tokens"
            )
        return
    documents = (train.documents or 0) + (validation.documents or 0)
    found = f"the corpus {options.corpus} has {documents} document(s)"
    if validation.examples == 0:
        raise DataError(
            f"no document was held out: {found}, and each is held out with probability "
            f"validation_fraction {options.validation_fraction}, by a hash of its text; blank lines separate "
            "documents; raise validation_fraction or give a validation_corpus"
        )
    if train.examples == 0:
        raise DataError(
            f"no document is left to train on: {found}, and validation_fraction "
            f"{options.validation_fraction} held out all; blank lines separate documents; lower "
            "validation_fraction or give a validation_corpus"
        )


def _refuse_other_parameters(folder: Path, options: PretrainingDataOptions) -> None:
    """What is found by its identity was perhaps prepared with other options than these."""
    manifest = load_manifest(folder)
    assert manifest is not None
    for name, value in dataclasses.asdict(_pair_parameters(options)).items():
        found = manifest["parameters"][name]
        if found != value:
            raise DataError(
                f"the checkpoint's data was prepared with {name} {found}, not {value}: resume with {found}, "
                "or start a new run from the weights with --checkpoint"
            )


def _open_validation_corpus(options: PretrainingDataOptions) -> Optional[Corpus]:
    if options.validation_corpus is None:
        return None
    return open_corpus(
        options.validation_corpus,
        subset=options.corpus_subset,
        split=VALIDATION,
        text_column=options.text_column,
    )


def _open_split(
    folder: Path, split: str, options: PretrainingDataOptions, tokenizer: Tokenizer, *, for_training: bool
) -> Tuple[PretrainingDataset, SplitStatistics]:
    masker = Masker(
        mask_id=tokenizer.mask_id,
        special_ids=tokenizer.special_ids,
        is_continuation=tokenizer.is_continuation,
        mask_tokens=options.mask_tokens,
        probability=options.masked_lm_probability,
        whole_word=options.whole_word_masking,
    )
    dataset = PretrainingDataset(
        open_shards(folder, split),
        masker,
        sequence_length=options.sequence_length,
        mask_tokens=options.mask_tokens,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        special_ids=tokenizer.special_ids,
        seed=options.seed,
        shuffle=for_training,
        dynamic_masking=options.dynamic_masking and for_training,
    )
    manifest = load_manifest(folder)
    assert manifest is not None
    return dataset, SplitStatistics.of_shards(manifest["splits"].get(split, []))


def _trained_tokenizer(
    corpus: Corpus, options: PretrainingDataOptions, vocabularies: Path, progress: bool
) -> Tokenizer:
    """The corpus' own vocabulary, trained once.

    All of the corpus is read, held-out documents too, so that runs which hold out other shares of it agree.
    """
    description: Dict[str, Any] = {
        "corpus": corpus.fingerprint(),
        "vocab_size": options.vocab_size,
        "lowercase": options.lowercase,
    }
    key = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16).hexdigest()
    return kept_or_made(
        vocabularies / key,
        lambda: train_tokenizer(corpus, options.vocab_size, lowercase=options.lowercase, progress=progress),
    )


# Pretraining data from TFRecord files, which are used where they lie.


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


# From the options of a run to its training and validation data: corpus, vocabulary, shards, datasets.


def prepare_pretraining_data(
    options: PretrainingDataOptions,
    *,
    cache_folder: Path,
    progress: bool = True,
    identity: Optional[str] = None,
) -> PretrainingData:
    """Everything that training needs, ready to read; from cache_folder where an earlier run has prepared it.

    identity: of the data that is wanted and no other. A text corpus isn't even looked at if the cache folder
    has what was prepared from it.
    Raises DataError for unusable corpora, vocabularies and shards (see their modules), for an unusable cache
    folder, and where the data that is there has another identity.
    """
    cache_folder = Path(cache_folder)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        data = _prepared_data(options, cache_folder, progress, identity)
    except OSError as error:
        raise DataError(
            f"cannot use {error.filename or cache_folder}: {error.strerror or error}. Prepared data is kept "
            f"in cache_folder {cache_folder}: make room and check that you may write there, or set another"
        ) from error
    if identity is not None and data.identity != identity:
        raise DataError(
            f"the corpus {options.corpus} or its vocabulary has changed since the checkpoint was written "
            f"(its data was {identity}, now it is {data.identity}): restore it, or start a new run from the "
            "weights with --checkpoint"
        )
    return data


def _prepared_data(
    options: PretrainingDataOptions, cache_folder: Path, progress: bool, identity: Optional[str]
) -> PretrainingData:
    prepared = None if identity is None else find_prepared(identity, cache_folder)
    if prepared is None:
        if is_tfrecord(options.corpus):
            return prepare_tfrecords(options, cache_folder, identity)
        prepared = prepare_text(options, cache_folder, progress)
    return open_text(prepared, options, cache_folder)
