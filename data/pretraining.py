"""Pretraining examples from shards: [CLS] A [SEP] B [SEP], padded and masked when they are fetched."""

from __future__ import annotations

from typing import Iterable

import numpy as np

from data.batches import Batch, SampleDataset, batch_of
from data.masking import Masker
from data.randomness import derive_key
from data.shards import ShardedExamples

_MASK_STREAM = 2  # keeps the masks' draws apart from the order's


class PretrainingDataset(SampleDataset):
    """Sentence pairs of a corpus. dynamic_masking: an example has another mask each epoch, else one for all.

    A mask is a pure function of (seed, epoch, index of the example).
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
        ends = np.empty((2, len(indices)), dtype=np.int64)  # behind A's [SEP], behind B's
        next_sentence_labels = np.empty(len(indices), dtype=np.int32)
        for row, (tokens_a, tokens_b, is_random_next) in enumerate(self._examples.read(indices)):
            end_a = len(tokens_a) + 2
            end_b = end_a + len(tokens_b) + 1
            ids = input_ids[row]
            ids[1 : end_a - 1] = tokens_a
            ids[end_a - 1] = self._sep_id
            ids[end_a : end_b - 1] = tokens_b
            ids[end_b - 1] = self._sep_id
            ends[0, row], ends[1, row] = end_a, end_b
            next_sentence_labels[row] = is_random_next

        columns = np.arange(self.sequence_length)
        attention_mask = columns < ends[1][:, None]
        token_type_ids = (columns >= ends[0][:, None]) & attention_mask
        keys = derive_key(self.seed, _MASK_STREAM, epochs if self.dynamic_masking else 0, indices)
        masked_ids, positions, labels = self._masker(input_ids, ends[1], keys)
        return batch_of(
            [masked_ids, attention_mask, token_type_ids, positions, labels, next_sentence_labels],
        )

    def token_counts(self) -> np.ndarray:
        counts = self._examples.token_counts(self._vocab_size)
        counts[self._special_ids] = 0
        return counts
