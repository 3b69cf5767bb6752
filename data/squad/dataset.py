"""Windows as batches for a model that finds answers."""

from __future__ import annotations

import numpy as np
import torch

from data.batches import Batch, SampleDataset
from data.masking import IGNORED_LABEL
from data.squad.features import Features


class SquadDataset(SampleDataset):
    """int32 batches of input_ids, attention_mask, token_type_ids [B, S], start and end positions [B].

    A position is -100 in a padding row, and [CLS]'s where the window doesn't show the answer.
    """

    def __init__(self, features: Features, *, seed: int, shuffle: bool) -> None:
        super().__init__(len(features), seed=seed, shuffle=shuffle)
        self.sequence_length = features.sequence_length
        self.pad_id = features.pad_id
        self._features = features

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        features = self._features
        columns = np.arange(self.sequence_length)
        attention_mask = columns < features.tokens[indices][:, None]
        token_type_ids = attention_mask & (columns >= features.context_start[indices][:, None])
        return _int32(
            features.input_ids[indices],
            attention_mask,
            token_type_ids,
            features.start_position[indices],
            features.end_position[indices],
        )

    def padding(self, rows: int) -> Batch:
        shape = (rows, self.sequence_length)
        attention_mask = np.zeros(shape)
        attention_mask[:, 0] = 1
        nowhere = np.full(rows, IGNORED_LABEL)
        return _int32(np.full(shape, self.pad_id), attention_mask, np.zeros(shape), nowhere, nowhere)


def _int32(*fields: np.ndarray) -> Batch:
    return tuple(torch.from_numpy(np.ascontiguousarray(field, dtype=np.int32)) for field in fields)
