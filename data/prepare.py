"""Prepares a run's pretraining data: corpus, vocabulary, shards or TFRecords, datasets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ipu.keys import REQUIRED

from .batches import SampleDataset
from .cache import (
    EXAMPLES,
    PreparedText,
    find_prepared,
    kept_or_made,
    load_kept_tokenizer,
    prepared_folder,
    record_prepared,
)
from .corpora import Corpus, open_corpus, tfrecord_notes
from .dataset import PretrainingDataset, PretrainingStatistics, SplitStatistics, TfRecordPretrainingDataset
from .files import DataError, remove_leftovers
from .keys import DataKeys
from .make_shards import PairParameters, prepare_shards
from .masking import Masker
from .packed import PackedDataset, RowTable, check_rows, fits, packed_rows, padding_note
from .packed_records import PackedRecords
from .shards import RECORD, TRAIN, VALIDATION, load_manifest, open_shards
from .tfrecord import TfRecordFile
from .tokenizer import (
    TRAINED_TOKENIZER,
    Tokenizer,
    named_tokenizer,
    refuse_larger_vocabulary,
    train_tokenizer,
)
from .vocabulary_training import MOST_WORDS

_SHORTEST_SEQUENCE = 8
# A shard's record stores the length of a segment in 16 bits.
_LONGEST_SEQUENCE = int(np.iinfo(RECORD["length_a"]).max)
_NOT_RANDOM = (
    "its training part has only one document: no segment can come from another one, so every next-sentence "
    "label is 0 and next-sentence prediction learns nothing; separate documents with blank lines"
)
# A share of random next segments is far from a half beyond this, and beyond three standard errors.
_FAR_FROM_HALF = 0.2


@dataclasses.dataclass(frozen=True)
class PretrainingDataOptions(DataKeys):
    """The keys of data, with those of the model and the run that data depend on.

    corpus: see open_corpus, or TFRecord files (a .tfrecord file, a glob, a folder of them).

    validation_corpus: if given, validation_fraction is ignored; for a Hugging Face dataset its split
    "validation" is used. tokenizer: "train" trains a vocabulary of vocab_size on the corpus, otherwise see
    load_tokenizer. preprocessing_workers: processes; None for all cores, 0 for none. pack_depth,
    separator_tokens: the most sequences in a packed row, and the padding between two.
    """

    vocab_size: int = REQUIRED
    seed: int = 42
    separator_tokens: int = 0
    pack_depth: int = 1
    data_timeout_s: int = 1800

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("corpus", "validation_corpus", "tokenizer"):
            if getattr(self, name) == "":
                raise DataError(f"{name} is empty: name a folder, '.' for the current one")
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
                f"preprocessing_workers {self.preprocessing_workers} is negative: use 0 for no workers"
            )


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """validation: unshuffled, static masks; None without one. tokenizer: None if TFRecords name none.

    identity: of the prepared data and the vocabulary; a checkpoint stores it for resuming. sequences_per_row:
    the mean of the training data's rows; 1 unless they are packed.
    """

    train: SampleDataset
    validation: Optional[SampleDataset]
    tokenizer: Optional[Tokenizer]
    statistics: PretrainingStatistics
    identity: str
    sequences_per_row: float = 1.0


def prepare_pretraining_data(
    options: PretrainingDataOptions,
    *,
    cache_folder: Path,
    progress: bool = True,
    identity: Optional[str] = None,
) -> PretrainingData:
    """Everything that training needs; from cache_folder if an earlier run has prepared it.

    identity: if given, only data with this identity is accepted, and a text corpus isn't read if its prepared
    data is in the cache folder.
    Raises DataError for unusable corpora, vocabularies and shards (see their modules), for an unusable cache
    folder, and if the data has another identity.
    """
    cache_folder = Path(cache_folder)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(cache_folder, recursive=True)
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
    text_or_records = None if identity is None else identity.partition(ROWS)[0]
    data = _examples(options, cache_folder, progress, text_or_records)
    return packed(data, options) if options.packed_data else data


def _examples(
    options: PretrainingDataOptions, cache_folder: Path, progress: bool, identity: Optional[str]
) -> PretrainingData:
    prepared = None if identity is None else find_prepared(identity, cache_folder)
    notes: Optional[Sequence[str]] = None
    if prepared is None:
        notes = tfrecord_notes(options.corpus)
        if notes is not None:
            return _prepare_tfrecords(options, cache_folder, identity, notes)
        prepared, notes = _prepare_text(options, cache_folder, progress)
    return _open_text(prepared, options, cache_folder, notes or ())


def _prepare_text(
    options: PretrainingDataOptions, cache_folder: Path, progress: bool
) -> Tuple[PreparedText, Tuple[str, ...]]:
    """Vocabulary and shards of the corpora, from the cache folder if they are there; and notes on them."""
    corpus = open_corpus(
        options.corpus,
        subset=options.corpus_subset,
        split=options.corpus_split,
        text_column=options.text_column,
        progress=progress,
    )
    validation_corpus = _open_validation_corpus(options)
    trained: List[str] = []
    if options.tokenizer == TRAINED_TOKENIZER:
        tokenizer = _trained_tokenizer(corpus, options, cache_folder / "vocabularies", progress, trained)
    else:
        tokenizer = named_tokenizer(options)

    def prepare(source: Corpus) -> str:
        return prepare_shards(
            source,
            tokenizer,
            _pair_parameters(options),
            cache_folder / EXAMPLES,
            workers=options.preprocessing_workers,
            timeout_s=options.data_timeout_s,
            progress=progress,
        ).name

    train = prepare(corpus)
    validation = train if options.validation_fraction > 0 else None
    if validation_corpus is not None:
        validation = prepare(validation_corpus)
    prepared = PreparedText(tokenizer, train, validation)
    record_prepared(prepared, cache_folder)
    notes = [*corpus.notes, *(() if validation_corpus is None else validation_corpus.notes), *trained]
    return prepared, tuple(notes)


def _pair_parameters(options: PretrainingDataOptions) -> PairParameters:
    return PairParameters(
        sequence_length=options.sequence_length,
        short_sequence_probability=options.short_sequence_probability,
        validation_fraction=options.validation_fraction if options.validation_corpus is None else 0.0,
        seed=options.seed,
    )


def _open_text(
    prepared: PreparedText, options: PretrainingDataOptions, cache_folder: Path, notes: Sequence[str]
) -> PretrainingData:
    """Datasets over the shards. Raises DataError if they don't match these options."""
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
    notes = (*notes, *_notes_on_pairs(options.corpus, train_counts))
    # Loader workers are forked; without this setting the tokenizers library prints a warning in each.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return PretrainingData(
        train,
        validation,
        tokenizer,
        PretrainingStatistics(options.corpus, tokenizer.vocab_size, train_counts, validation_counts, notes),
        prepared.identity,
    )


def _notes_on_pairs(corpus: str, train: SplitStatistics) -> Iterator[str]:
    """What is wrong with the labels of next-sentence prediction, if anything."""
    if train.documents == 1:
        yield f"{corpus}: {_NOT_RANDOM}"
        return
    if not train.random_next or not train.documents or not train.sentences:
        return
    share = train.random_next / train.examples
    if abs(share - 0.5) <= max(_FAR_FROM_HALF, 1.5 / math.sqrt(train.examples)):
        return
    lengths = (
        f"its {train.documents} documents have {train.sentences / train.documents:.1f} sentences on average"
    )
    yield (
        f"warning: {corpus}: {share:.0%} of the next-sentence labels are random instead of half of them: "
        f"{lengths}, and a segment without a next sentence gets a random one. Next-sentence prediction "
        "learns little from this. Put the sentences of a document on consecutive lines, and one blank line "
        "between documents"
    )


def _require_both_parts(
    options: PretrainingDataOptions, train: SplitStatistics, validation: Optional[SplitStatistics]
) -> None:
    """Raises DataError if splitting the corpus into training and held-out documents left one part empty."""
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
    if validation.examples == 0 and validation.documents:
        raise DataError(
            f"the {validation.documents} of {documents} documents of {options.corpus} that were held out "
            f"give no example: they have {validation.sentences} sentence(s), and an example needs two, or a "
            "second document; raise validation_fraction or give a validation_corpus"
        )
    if validation.examples == 0:
        raise DataError(
            f"no document was held out: {found}, and each is held out with probability "
            f"validation_fraction {options.validation_fraction}, by a hash of its text; separate "
            "documents with blank lines, raise validation_fraction or give a validation_corpus"
        )
    if train.examples == 0:
        raise DataError(
            f"no document is left to train on: {found}, and validation_fraction "
            f"{options.validation_fraction} held out all; separate documents with blank lines, lower "
            "validation_fraction or give a validation_corpus"
        )


def _refuse_other_parameters(folder: Path, options: PretrainingDataOptions) -> None:
    """Data found by its identity may have been prepared with other options than these."""
    manifest = load_manifest(folder)
    assert manifest is not None
    for name, value in dataclasses.asdict(_pair_parameters(options)).items():
        found = manifest["parameters"].get(name)
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


ROWS = "+rows-"  # in an identity: what follows is a digest of the packed rows


def packed(data: PretrainingData, options: PretrainingDataOptions) -> PretrainingData:
    """The same sequences in packed rows. Packed records keep their rows if those have room for separators."""
    hasher = hashlib.blake2b(digest_size=16)
    notes, ratios = list(data.statistics.notes), []
    shape: Dict[str, int] = {
        "row_length": options.sequence_length,
        "depth": options.pack_depth,
        "separator": options.separator_tokens,
    }
    most = options.mask_tokens + options.pack_depth - 1

    def rows_of(dataset: SampleDataset, what: str, *, shuffle: bool) -> PackedDataset:
        lengths, predictions = dataset.sizes()
        if len(lengths) == 0:
            raise DataError(
                f"the {what} data of {options.corpus} has no example to pack: use a larger corpus"
            )
        if lengths.max() > options.sequence_length:
            raise DataError(
                f"a sequence of the {what} data has {lengths.max()} tokens, but a row has "
                f"{options.sequence_length} (sequence_length): the prepared data is damaged, so delete "
                "cache_folder and start again"
            )
        table: Optional[RowTable] = None
        if isinstance(dataset, PackedRecords):
            table = dataset.rows()
            if not fits(table, lengths, options.sequence_length, options.separator_tokens):
                table = None
                notes.append(
                    f"packing, {what}: some rows of the files lack room for the {options.separator_tokens} "
                    "tokens between two sequences that the convolution needs: the sequences are packed again"
                )
        if table is None:
            table = packed_rows(lengths, **shape, seed=options.seed)
        check_rows(table, lengths, predictions, **shape, most_predictions=most)
        hasher.update(table.first.astype("<i8").tobytes() + table.sequences.astype("<i4").tobytes())
        note, ratio = padding_note(lengths, table, options.sequence_length, what)
        notes.append(note)
        ratios.append(ratio)
        return PackedDataset(dataset, table, **shape, mask_tokens=most, seed=options.seed, shuffle=shuffle)

    train = rows_of(data.train, "training", shuffle=True)
    validation = None
    if data.validation is not None:
        validation = rows_of(data.validation, "held-out", shuffle=False)
    return dataclasses.replace(
        data,
        train=train,
        validation=validation,
        statistics=dataclasses.replace(data.statistics, notes=tuple(notes)),
        identity=f"{data.identity}{ROWS}{hasher.hexdigest()}",
        sequences_per_row=ratios[0],
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
    corpus: Corpus, options: PretrainingDataOptions, vocabularies: Path, progress: bool, notes: List[str]
) -> Tokenizer:
    """A vocabulary trained on the corpus, once.

    It is trained on the whole corpus, including held-out documents, so that it doesn't depend on
    validation_fraction.
    """
    description: Dict[str, Any] = {
        "corpus": corpus.fingerprint(),
        "vocab_size": options.vocab_size,
        "lowercase": options.lowercase,
        "most_words": MOST_WORDS,
    }
    key = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16).hexdigest()
    return kept_or_made(
        vocabularies / key,
        lambda: train_tokenizer(
            corpus, options.vocab_size, lowercase=options.lowercase, progress=progress, notes=notes
        ),
    )


def _prepare_tfrecords(
    options: PretrainingDataOptions, cache_folder: Path, identity: Optional[str], found: Sequence[str]
) -> PretrainingData:
    """Datasets over the records of files. The tokeniser is stored with the identity, as for text."""
    tokenizer: Optional[Tokenizer] = None
    notes = [*found, f"{options.corpus} is already masked: its masks and lengths are used as they are"]
    if options.tokenizer == TRAINED_TOKENIZER:
        notes.append(
            "no tokeniser: token ids have no text to train a vocabulary on; name the one that made them"
        )
    else:
        if identity is not None:
            tokenizer = load_kept_tokenizer(prepared_folder(identity, cache_folder))
        if tokenizer is None:
            tokenizer = named_tokenizer(options)

    def dataset(records: TfRecordFile, held_out: Optional[bool], for_training: bool) -> SampleDataset:
        if options.packed_data:
            return PackedRecords(
                records,
                sequence_length=options.sequence_length,
                mask_tokens=options.mask_tokens + options.pack_depth - 1,
                depth=options.pack_depth,
                vocab_size=options.vocab_size,
                seed=options.seed,
                validation_fraction=options.validation_fraction,
                held_out=held_out,
                index_folder=indices,
            )
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
    validation: Optional[SampleDataset] = None
    if options.validation_corpus is not None:
        if tfrecord_notes(options.validation_corpus) is None:
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
