"""Datasets of pretraining examples, from shards and from TFRecord files, and their statistics."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, Optional, Tuple

import numpy as np

from .batches import Batch, SampleDataset, batch_of
from .files import DataError
from .masking import IGNORED_LABEL, Masker
from .randomness import derive_key, unit_interval
from .shards import ShardedExamples
from .tfrecord import FEATURES, TfRecordFile

# Streams separate the random numbers of masks, splits and order (batches.py).
_MASK_STREAM = 2
_SPLIT_STREAM = 3
_COUNTED_AT_ONCE = 256
SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]
_TOKENS = ("input_ids", "input_mask", "segment_ids")
_PREDICTIONS = ("masked_lm_positions", "masked_lm_ids")


class PretrainingDataset(SampleDataset):
    """Sentence pairs from shards: [CLS] A [SEP] B [SEP], padded and masked when fetched.

    dynamic_masking: an example gets a new mask in each epoch, otherwise always the same. A mask is a pure
    function of (seed, epoch, index of the example).
    """

    def __init__(
        self,
        examples: ShardedExamples,
        masker: Masker,
        *,
        sequence_length: int,
        mask_tokens: int,
        vocab_size: int,
        pad_id: int,
        cls_id: int,
        sep_id: int,
        special_ids: Iterable[int],
        seed: int,
        shuffle: bool = True,
        dynamic_masking: bool = True,
    ) -> None:
        super().__init__(len(examples), seed=seed, shuffle=shuffle)
        self.sequence_length = sequence_length
        self.mask_tokens = mask_tokens
        self.pad_id = pad_id
        self.dynamic_masking = dynamic_masking
        self._examples = examples
        self._masker = masker
        self._vocab_size = vocab_size
        self._cls_id = cls_id
        self._sep_id = sep_id
        self._special_ids = sorted(special_ids)

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        shape = (len(indices), self.sequence_length)
        input_ids = np.full(shape, self.pad_id, dtype=np.int32)
        input_ids[:, 0] = self._cls_id
        ends = np.empty((2, len(indices)), dtype=np.int64)  # one past A's [SEP], one past B's
        next_sentence_labels = np.empty(len(indices), dtype=np.int32)
        for row, (tokens_a, tokens_b, is_random_next) in enumerate(self._examples.read(indices)):
            end_a = len(tokens_a) + 2
            end_b = end_a + len(tokens_b) + 1
            if end_b > self.sequence_length:
                found = f"{end_b} tokens, more than sequence_length {self.sequence_length}"
                raise self._examples.damage(int(indices[row]), found)
            ids = input_ids[row]
            ids[1 : end_a - 1] = tokens_a
            ids[end_a - 1] = self._sep_id
            ids[end_a : end_b - 1] = tokens_b
            ids[end_b - 1] = self._sep_id
            ends[0, row], ends[1, row] = end_a, end_b
            next_sentence_labels[row] = is_random_next

        is_wrong = (
            (input_ids < 0) | (input_ids >= self._vocab_size) | (next_sentence_labels >> 1 != 0)[:, None]
        )
        if is_wrong.any():
            row, column = np.argwhere(is_wrong)[0].tolist()
            found = f"token id {input_ids[row, column]} of {self._vocab_size}, or a label that isn't 0 or 1"
            raise self._examples.damage(int(indices[row]), found)
        columns = np.arange(self.sequence_length)
        attention_mask = columns < ends[1][:, None]
        token_type_ids = (columns >= ends[0][:, None]) & attention_mask
        keys = derive_key(self.seed, _MASK_STREAM, epochs if self.dynamic_masking else 0, indices)
        masked_ids, positions, labels = self._masker(input_ids, ends[1], keys)
        return batch_of(
            [masked_ids, attention_mask, token_type_ids, positions, labels, next_sentence_labels],
        )

    def sizes(self) -> Tuple[np.ndarray, np.ndarray]:
        lengths = self._examples.lengths() + SPECIAL_TOKENS
        return lengths, self._masker.predictions(lengths)

    def token_counts(self) -> np.ndarray:
        counts = self._examples.token_counts(self._vocab_size)
        counts[self._special_ids] = 0
        return counts


class TfRecordPretrainingDataset(SampleDataset):
    """Examples of TFRecord files as written by Graphcore's (and Google's) preprocessing.

    The masks are in the files and never redrawn: they are the same in every epoch.

    masked_lm_ids 0 marks an unused prediction in these files and becomes label -100; so a real prediction of
    token 0, [PAD], can't be distinguished, and doesn't occur. held_out selects the fraction
    validation_fraction of the records by a hash of their number, the rest (False), or all (None). These files
    usually repeat a document with several masks (a duplication factor of 5), so such a validation set isn't
    unseen text. Token ids outside the vocabulary, lengths other than the configured ones and impossible
    values raise DataError when a record is read. Opening reads the first record, so that files of another
    kind fail there.
    """

    def __init__(
        self,
        records: TfRecordFile,
        *,
        sequence_length: int,
        mask_tokens: int,
        vocab_size: int,
        seed: int,
        shuffle: bool = True,
        validation_fraction: float = 0.0,
        held_out: Optional[bool] = None,
    ) -> None:
        self._records = records
        self._vocab_size = vocab_size
        self._selected: Optional[np.ndarray] = None
        num_examples = len(records)
        if held_out is not None:
            self._selected = np.flatnonzero(held_out_records(num_examples, validation_fraction) == held_out)
            num_examples = len(self._selected)
        super().__init__(num_examples, seed=seed, shuffle=shuffle)
        self.sequence_length = sequence_length
        self.mask_tokens = mask_tokens
        if num_examples:
            self._read(np.zeros(1, dtype=np.int64))

    def _read(self, indices: np.ndarray) -> Dict[str, np.ndarray]:
        """The records' features, int64 [B,S], [B,M] or [B,1]; DataError names an invalid record."""
        numbers = (indices if self._selected is None else self._selected[indices]).tolist()
        records = [self._records.read(number) for number in numbers]
        for number, record in zip(numbers, records):
            for features, wanted, key in (
                (_TOKENS, self.sequence_length, "sequence_length"),
                (_PREDICTIONS, self.mask_tokens, "mask_tokens"),
            ):
                for feature in features:
                    found = len(record[feature])
                    if found != wanted:
                        raise DataError(
                            f"{self._records.describe(number)} has {feature} of length {found}, but {key} is "
                            f"{wanted}: set {key} to {found} or use files written for {wanted}"
                        )
        rows = {feature: np.stack([record[feature] for record in records]) for feature in FEATURES}
        for feature, limit in (
            ("input_ids", self._vocab_size),
            ("masked_lm_ids", self._vocab_size),
            ("masked_lm_positions", self.sequence_length),
            ("input_mask", 2),
            ("segment_ids", 2),
            ("next_sentence_labels", 2),
        ):
            is_wrong = (rows[feature] < 0) | (rows[feature] >= limit)
            if is_wrong.any():
                row, column = np.argwhere(is_wrong)[0].tolist()
                where, found = self._records.describe(numbers[row]), rows[feature][row, column]
                if feature in ("input_ids", "masked_lm_ids"):
                    raise DataError(
                        f"{where} has token id {found} in {feature}, but vocab_size is {limit}: "
                        "set vocab_size to that of the files' vocabulary"
                    )
                raise DataError(
                    f"{where} has {found} in {feature}, but must be 0 to {limit - 1}: write the file again"
                )
        return rows

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        rows = self._read(indices)
        labels = rows["masked_lm_ids"]
        return batch_of(
            [
                *(rows[feature] for feature in _TOKENS),
                rows["masked_lm_positions"],
                np.where(labels == 0, IGNORED_LABEL, labels),
                rows["next_sentence_labels"][:, 0],
            ]
        )

    def token_counts(self) -> np.ndarray:
        """Reads every record. [CLS] and [SEP] are identified by position: first and last."""
        counts = np.zeros(self._vocab_size, dtype=np.int64)
        for start in range(0, self.num_examples, _COUNTED_AT_ONCE):
            rows = self._read(np.arange(start, min(start + _COUNTED_AT_ONCE, self.num_examples)))
            counts += text_counts(
                rows["input_ids"],
                rows["input_mask"],
                rows["masked_lm_positions"],
                rows["masked_lm_ids"],
                self._vocab_size,
            )
        return counts


def held_out_records(number: int, validation_fraction: float) -> np.ndarray:
    """bool [number]: the records that are held out, by a hash of their number."""
    draws = unit_interval(derive_key(_SPLIT_STREAM, np.arange(number)))
    return np.asarray(draws < validation_fraction)


def text_counts(
    ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, labels: np.ndarray, vocab_size: int
) -> np.ndarray:
    """int64 [vocab_size]: how often each token occurs in masked examples, int64 [B,S] and [B,M], unmasked.

    A label of 0 is unused. [CLS] and [SEP] are those that are first and last, and aren't counted.
    """
    ids, is_real = ids.copy(), mask == 1
    last = ids[np.arange(len(ids)), is_real.sum(axis=1) - 1]
    specials = np.stack([ids[:, 0], last])[:, :, None]
    row, prediction = np.nonzero(labels)
    ids[row, positions[row, prediction]] = labels[row, prediction]
    is_text = is_real & (ids != specials[0]) & (ids != specials[1])
    return np.bincount(ids[is_text], minlength=vocab_size)


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """Counts of one split. tokens: of the text, without special tokens. None if unknown."""

    examples: int
    random_next: Optional[int] = None
    documents: Optional[int] = None
    sentences: Optional[int] = None
    tokens: Optional[int] = None

    @classmethod
    def of_shards(cls, headers: Iterable[Dict[str, Any]]) -> SplitStatistics:
        """The sums over the headers of a split's shards."""
        totals = dict.fromkeys((field.name for field in dataclasses.fields(cls)), 0)
        for header in headers:
            for name in totals:
                totals[name] += header[name]
        return cls(**totals)


@dataclasses.dataclass(frozen=True)
class PretrainingStatistics:
    """corpus: its name. vocabulary: size of the tokeniser, None without one. notes: for the log."""

    corpus: str
    vocabulary: Optional[int]
    train: SplitStatistics
    validation: Optional[SplitStatistics]
    notes: Tuple[str, ...] = ()

    def lines(self) -> Iterable[str]:
        """Log lines: the corpus, the known counts of each split, the notes."""
        yield f"corpus {self.corpus}, vocabulary {self.vocabulary or 'not known'}"
        for name, split in (("training", self.train), ("held-out", self.validation)):
            if split is not None:
                counts = dataclasses.asdict(split).items()
                yield f"{name}: " + ", ".join(
                    f"{count} {what.replace('_', ' ')}" for what, count in counts if count is not None
                )
        yield from self.notes


def unigram_entropy(dataset: SampleDataset) -> float:
    """Entropy (nats) of the distribution of the dataset's non-special tokens, from their frequencies.

    It is the masked-LM loss of the best model that ignores context, so a trained model must be below it.
    """
    counts = dataset.token_counts()
    counts = counts[counts > 0]
    if len(counts) == 0:
        raise DataError("the dataset has no tokens, so their entropy isn't defined")
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
