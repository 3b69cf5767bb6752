"""Pretraining examples from TFRecord files as Graphcore's (and Google's) preparation writes them."""

from __future__ import annotations

from typing import Dict, Optional

import numpy as np

from data.batches import Batch, SampleDataset, batch_of
from data.errors import DataError
from data.masking import IGNORED_LABEL
from data.randomness import derive_key, unit_interval
from data.tfrecord import TfRecordFile

_SPLIT_STREAM = 3
_TOKENS = ("input_ids", "input_mask", "segment_ids")
_PREDICTIONS = ("masked_lm_positions", "masked_lm_ids")


class TfRecordPretrainingDataset(SampleDataset):
    """The records' own examples with their own masks, which are never drawn anew: every epoch sees the same.

    masked_lm_ids 0 marks an unused prediction in these files and becomes label -100; so a real prediction of
    token 0, [PAD], can't be told apart, and doesn't occur. held_out selects the share validation_fraction of
    the records by a hash of their number, or the rest (False), or all (None). These files usually repeat a
    document with several masks (a duplication factor of 5), so such a validation set isn't of unseen text.
    Token ids outside of the vocabulary and lengths other than the configured ones are DataErrors.
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
            self._read(0)

    def _read(self, index: int) -> Dict[str, np.ndarray]:
        number = index if self._selected is None else int(self._selected[index])
        record = self._records.read(number)
        where = f"record {number} of {self._records.source}"
        for features, wanted, key in (
            (_TOKENS, self.sequence_length, "sequence_length"),
            (_PREDICTIONS, self.mask_tokens, "mask_tokens"),
        ):
            for feature in features:
                found = len(record[feature])
                if found != wanted:
                    raise DataError(
                        f"{where} has {feature} of length {found}, but {key} is {wanted}: "
                        f"set {key} to {found} or take files written for {wanted}"
                    )
        for feature in ("input_ids", "masked_lm_ids"):
            low, high = int(record[feature].min()), int(record[feature].max())
            if low < 0 or high >= self._vocab_size:
                raise DataError(
                    f"{where} has token id {high if low >= 0 else low} in {feature}, "
                    f"but vocab_size is {self._vocab_size}: set vocab_size to that of the files' vocabulary"
                )
        return record

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        records = [self._read(index) for index in indices.tolist()]

        def stacked(feature: str) -> np.ndarray:
            return np.stack([record[feature] for record in records])

        labels = stacked("masked_lm_ids")
        return batch_of(
            [
                *(stacked(feature) for feature in _TOKENS),
                stacked("masked_lm_positions"),
                np.where(labels == 0, IGNORED_LABEL, labels),
                stacked("next_sentence_labels").reshape(len(records)),
            ]
        )

    def token_counts(self) -> np.ndarray:
        """Reads every record. [CLS] and [SEP] are known by their places, first and last."""
        counts = np.zeros(self._vocab_size, dtype=np.int64)
        for index in range(self.num_examples):
            record = self._read(index)
            ids = record["input_ids"][record["input_mask"] == 1].copy()
            if len(ids) == 0:
                continue
            specials = [ids[0], ids[-1]]
            used = record["masked_lm_ids"] != 0
            ids[record["masked_lm_positions"][used]] = record["masked_lm_ids"][used]
            counts += np.bincount(ids[~np.isin(ids, specials)], minlength=self._vocab_size)
        return counts
