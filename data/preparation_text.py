"""Pretraining data from a corpus of text: its vocabulary and shards, and the datasets over them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from data.chunks import TRAIN, VALIDATION
from data.corpora import Corpus, open_corpus
from data.errors import DataError
from data.masking import Masker
from data.prepared import EXAMPLES, PreparedText, record_prepared
from data.preprocessing import PairParameters, prepare_shards
from data.pretraining import PretrainingDataset
from data.pretraining_data import (
    TRAINED_TOKENIZER,
    PretrainingData,
    PretrainingDataOptions,
    named_tokenizer,
    refuse_larger_vocabulary,
)
from data.shards import load_manifest, open_shards
from data.statistics import PretrainingStatistics, SplitStatistics
from data.tokenizer import Tokenizer, train_tokenizer
from data.vocabulary_cache import kept_or_made

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
