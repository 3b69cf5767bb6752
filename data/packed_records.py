"""Packed rows in TFRecord files, as Graphcore's BERT applications write them.

A record has seven int64 features, for a row of S tokens that has room for D sequences and M predictions:

    packed_input_ids             [S] the sequences one after the other, each without its [CLS]; padding; then,
                                 in the last D places, the [CLS] of each sequence, the first one's last
    packed_input_mask            [S] the number of each token's sequence, from 1 on; 0 is padding
    packed_segment_ids           [S] 0 in segment A, 1 in B
    packed_position_ids          [S] the position of each token in its sequence: [CLS] has 0
    packed_masked_lm_positions   [M] places in the row, 0 where unused
    packed_masked_lm_ids         [M] 0 where unused
    packed_next_sentence_labels  [D] of the [CLS] in the same one of the last D places; 0 where unused

A full row has tokens in those last places that no [CLS] needs; position and mask tell which. So a sequence is
what has its number, in the order of its positions, and that is how it is read here, whatever the places.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np

from .batches import Batch, SampleDataset, batch_of
from .dataset import held_out_records, text_counts
from .files import DataError, write_atomically
from .masking import IGNORED_LABEL
from .packed import RowTable
from .tfrecord import PACKED_FEATURES, TfRecordFile

_IDS, _MASK, _SEGMENTS, _POSITIONS, _MASKED, _MASKED_IDS, _LABELS = PACKED_FEATURES
_COUNTED_AT_ONCE = 256


class PackedRecords(SampleDataset):
    """The sequences of packed records, each alone, in the files' order; their masks are those of the files.

    Opening reads every record, so that a bad one is an error before training; with `index_folder`, only once.
    `held_out`: as in TfRecordPretrainingDataset, of records. `mask_tokens`: predictions of a row.
    """

    def __init__(
        self,
        records: TfRecordFile,
        *,
        sequence_length: int,
        mask_tokens: int,
        depth: int,
        vocab_size: int,
        seed: int,
        validation_fraction: float = 0.0,
        held_out: Optional[bool] = None,
        index_folder: Optional[Path] = None,
    ) -> None:
        self._records, self._vocab_size = records, vocab_size
        self.sequence_length, self.mask_tokens = sequence_length, mask_tokens
        found = _scanned(records, sequence_length, vocab_size, index_folder)
        _refuse(found, records, mask_tokens, depth)
        if held_out is not None:
            selected = held_out_records(len(records), validation_fraction) == held_out
            found = found[selected[found[:, 0]]]
        # Of each sequence: its record, its number there (from 1 on), its tokens, its predictions.
        self._found = found
        super().__init__(len(found), seed=seed, shuffle=False)

    def sizes(self) -> Tuple[np.ndarray, np.ndarray]:
        return self._found[:, 2], self._found[:, 3]

    def rows(self) -> RowTable:
        """The rows of the files."""
        first = np.flatnonzero(self._found[:, 1] == 1)
        sequences = np.arange(len(self._found), dtype=np.int32)
        return RowTable(np.append(first, len(sequences)), sequences)

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        batch = [field.numpy() for field in self.padding(len(indices))]
        batch[1][:] = 0
        latest: Tuple[int, Dict[str, np.ndarray]] = (-1, {})
        for row, (record, number, length, predictions) in enumerate(self._found[indices].tolist()):
            if record != latest[0]:
                latest = (record, self._records.read_packed(record))
            features = latest[1]
            places = _places(features, number)
            batch[0][row, :length] = features[_IDS][places]
            batch[1][row, :length] = 1
            batch[2][row, :length] = features[_SEGMENTS][places]
            ours = _predictions(features, number)
            batch[3][row, :predictions] = features[_POSITIONS][features[_MASKED][ours]]
            batch[4][row, :predictions] = features[_MASKED_IDS][ours]
            batch[5][row] = features[_LABELS][places[0] - (self.sequence_length - len(features[_LABELS]))]
        return batch_of(batch)

    def token_counts(self) -> np.ndarray:
        counts = np.zeros(self._vocab_size, dtype=np.int64)
        for start in range(0, self.num_examples, _COUNTED_AT_ONCE):
            numbers = np.arange(start, min(start + _COUNTED_AT_ONCE, self.num_examples))
            ids, mask, _, positions, labels, _ = (
                field.numpy().astype(np.int64) for field in self.fetch(numbers, numbers)
            )
            labels = np.where(labels == IGNORED_LABEL, 0, labels)
            counts += text_counts(ids, mask, positions, labels, self._vocab_size)
        return counts


def _places(features: Dict[str, np.ndarray], number: int) -> np.ndarray:
    """The places in the row of a sequence's tokens, in the order of the sequence."""
    places = np.flatnonzero(features[_MASK] == number)
    return places[np.argsort(features[_POSITIONS][places], kind="stable")]


def _predictions(features: Dict[str, np.ndarray], number: int) -> np.ndarray:
    """Which of the row's predictions are in a sequence."""
    masked = features[_MASK][features[_MASKED]]
    return np.flatnonzero((features[_MASKED_IDS] != 0) & (masked == number))


def _scanned(
    records: TfRecordFile, row_length: int, vocab_size: int, index_folder: Optional[Path]
) -> np.ndarray:
    """int64 [sequences, 4]: record, number in it, tokens, predictions. DataError names a bad record."""
    path: Optional[Path] = None
    if index_folder is not None:
        key = f"packed-1 {records.fingerprint()} {row_length} {vocab_size}"
        path = index_folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.rows"
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                return np.frombuffer(content[32:], dtype="<i8").reshape(-1, 4)
    found: List[Tuple[int, int, int, int]] = []
    for record in range(len(records)):
        features = records.read_packed(record)
        fault = _fault(features, row_length, vocab_size)
        if fault is not None:
            raise DataError(f"{records.describe(record)} {fault}")
        for number in range(1, int(features[_MASK].max(initial=0)) + 1):
            predictions = len(_predictions(features, number))
            found.append((record, number, len(_places(features, number)), predictions))
    table = np.array(found, dtype="<i8").reshape(-1, 4)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = table.tobytes()
        write_atomically(path, hashlib.sha256(content).digest() + content)
    return table


def _fault(features: Dict[str, np.ndarray], row_length: int, vocab_size: int) -> Optional[str]:
    """What is wrong with a record, in words."""
    for name in (_IDS, _MASK, _SEGMENTS, _POSITIONS):
        found = len(features[name])
        if found != row_length:
            return (
                f"has {name} of length {found}, but sequence_length is {row_length}: set sequence_length "
                f"to {found} or use files written for {row_length}"
            )
    slots = len(features[_MASKED])
    if slots != len(features[_MASKED_IDS]):
        return f"has {slots} {_MASKED}, but {len(features[_MASKED_IDS])} {_MASKED_IDS}: write it again"
    for name, limit in (
        (_IDS, vocab_size),
        (_MASKED_IDS, vocab_size),
        (_MASK, row_length + 1),
        (_SEGMENTS, 2),
        (_POSITIONS, row_length),
        (_MASKED, row_length),
        (_LABELS, 2),
    ):
        wrong = features[name][(features[name] < 0) | (features[name] >= limit)]
        if len(wrong) and limit == vocab_size:
            return (
                f"has token id {wrong[0]} in {name}, but vocab_size is {limit}: set vocab_size to that of "
                "the files' vocabulary"
            )
        if len(wrong):
            return f"has {wrong[0]} in {name}, but must be 0 to {limit - 1}: write the file again"
    labels_from = row_length - len(features[_LABELS])
    sequences = int(features[_MASK].max(initial=0))
    if not sequences:
        return "has no sequence: write the file again"
    for number in range(1, sequences + 1):
        places = _places(features, number)
        if not np.array_equal(features[_POSITIONS][places], np.arange(len(places))) or not len(places):
            return (
                f"has positions in sequence {number} that aren't 0, 1, 2, ...: it isn't packed as "
                "Graphcore's applications do (docs/packing.md)"
            )
        if places[0] < labels_from:
            return (
                f"has the first token of sequence {number} at {places[0]}, but its label belongs to one of "
                f"the last {len(features[_LABELS])} places of the row (docs/packing.md)"
            )
    used = features[_MASKED][features[_MASKED_IDS] != 0]
    if (features[_MASK][used] == 0).any():
        return "predicts a token of the padding: write the file again"
    return None


def _refuse(found: np.ndarray, records: TfRecordFile, mask_tokens: int, depth: int) -> None:
    """Raises DataError if a row has more sequences or predictions than the recipe's rows."""
    deepest = int(np.argmax(found[:, 1]))
    most = int(found[deepest, 1])
    if most > depth:
        raise DataError(
            f"{records.describe(int(found[deepest, 0]))} has {most} sequences, but a row of this recipe has "
            f"at most {depth} (max_sequences_per_pack): set it to {most}, or none"
        )
    predictions = np.bincount(found[:, 0], weights=found[:, 3]).astype(np.int64)
    fullest = int(np.argmax(predictions))
    if predictions[fullest] > mask_tokens:
        raise DataError(
            f"{records.describe(fullest)} predicts {predictions[fullest]} tokens, but a row of this recipe "
            f"at most {mask_tokens} (mask_tokens + max_sequences_per_pack - 1): raise mask_tokens by "
            f"{predictions[fullest] - mask_tokens}"
        )
