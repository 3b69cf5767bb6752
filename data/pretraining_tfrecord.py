"""Pretraining examples from TFRecord files as Graphcore's (and Google's) preparation writes them."""

from __future__ import annotations

from typing import Dict, Optional

import numpy as np

from data.batches import Batch, SampleDataset, batch_of
from data.errors import DataError
from data.masking import IGNORED_LABEL
from data.randomness import derive_key, unit_interval
from data.tfrecord import FEATURES, TfRecordFile

_SPLIT_STREAM = 3
_COUNTED_AT_ONCE = 256
_TOKENS = ("input_ids", "input_mask", "segment_ids")
_PREDICTIONS = ("masked_lm_positions", "masked_lm_ids")


class TfRecordPretrainingDataset(SampleDataset):
    """The records' own examples with their own masks, which are never drawn anew: every epoch sees the same.

    masked_lm_ids 0 marks an unused prediction in these files and becomes label -100; so a real prediction of
    token 0, [PAD], can't be told apart, and doesn't occur. held_out selects the share validation_fraction of
    the records by a hash of their number, or the rest (False), or all (None). These files usually repeat a
    document with several masks (a duplication factor of 5), so such a validation set isn't of unseen text.
    Token ids outside of the vocabulary, lengths other than the configured ones and impossible values are
    DataErrors when a record is read. The first is read at opening: files of another kind are found there.
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
            numbers = np.arange(num_examples)
            is_held_out = unit_interval(derive_key(_SPLIT_STREAM, numbers)) < validation_fraction
            self._selected = np.flatnonzero(is_held_out == held_out)
            num_examples = len(self._selected)
        super().__init__(num_examples, seed=seed, shuffle=shuffle)
        self.sequence_length = sequence_length
        self.mask_tokens = mask_tokens
        if num_examples:
            self._read(np.zeros(1, dtype=np.int64))

    def _read(self, indices: np.ndarray) -> Dict[str, np.ndarray]:
        """The records' features, int64 [B,S], [B,M] or [B,1]; DataError names a record that doesn't fit."""
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
                            f"{wanted}: set {key} to {found} or take files written for {wanted}"
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
                    f"{where} has {found} in {feature}, but only 0 to {limit - 1} can be: "
                    "write the file again"
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
        """Reads every record. [CLS] and [SEP] are known by their places, first and last."""
        counts = np.zeros(self._vocab_size, dtype=np.int64)
        for start in range(0, self.num_examples, _COUNTED_AT_ONCE):
            rows = self._read(np.arange(start, min(start + _COUNTED_AT_ONCE, self.num_examples)))
            ids, is_real = rows["input_ids"], rows["input_mask"] == 1
            last = ids[np.arange(len(ids)), is_real.sum(axis=1) - 1]
            specials = np.stack([ids[:, 0], last])[:, :, None]
            row, prediction = np.nonzero(rows["masked_lm_ids"])
            ids[row, rows["masked_lm_positions"][row, prediction]] = rows["masked_lm_ids"][row, prediction]
            is_text = is_real & (ids != specials[0]) & (ids != specials[1])
            counts += np.bincount(ids[is_text], minlength=self._vocab_size)
        return counts
