"""Packed rows: which sequences are in which row, and the batches made of them.

Legend: B rows, S tokens of a row, D the most sequences in a row (depth), M predictions of a row, N sequences.
A row holds its sequences one after the other, each as it would be alone ([CLS] A [SEP] B [SEP], positions
from 0), with `separator` tokens of padding between two, then padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

import numpy as np
import torch

from .batches import BATCH_FIELDS, Batch, SampleDataset
from .masking import IGNORED_LABEL
from .packing import pack
from .randomness import IndexPermutation, derive_key

# As BATCH_FIELDS, but attention_mask has the number of a token's sequence in its row, from 1 on, and there
# are D next_sentence_labels, -100 where unused. [B,S] positions in the sequence; [B,D] where each begins.
PACKED_FIELDS = (*BATCH_FIELDS, "position_ids", "next_sentence_positions")
_ASSIGN_STREAM = 4  # separates the random numbers of this file from those of masks, splits and order


@dataclass(frozen=True)
class RowTable:
    """The sequences of each row: row i has `sequences[first[i] : first[i + 1]]`, in this order."""

    first: np.ndarray
    sequences: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1


class BadPacking(AssertionError):
    """A row table that isn't a packing of the sequences: a bug of this program."""


def check_rows(
    table: RowTable,
    lengths: np.ndarray,
    predictions: np.ndarray,
    *,
    row_length: int,
    depth: int,
    separator: int,
    most_predictions: int,
) -> None:
    """Raises BadPacking unless each sequence is in one row and each row holds what is in it.

    :param lengths, predictions: tokens and masked positions of each sequence.
    """
    first, sequences = table.first, table.sequences
    if len(first) == 0 or first[0] != 0 or first[-1] != len(sequences) or (np.diff(first) < 1).any():
        raise BadPacking("the rows don't cover the list of sequences, or one is empty")
    if len(sequences) != len(lengths) or (np.bincount(sequences, minlength=len(lengths)) != 1).any():
        raise BadPacking("a sequence is missing, or in more than one place")
    inside = np.diff(first)
    used = np.add.reduceat(lengths[sequences], first[:-1]) + separator * (inside - 1)
    masked = np.add.reduceat(predictions[sequences], first[:-1])
    for what, found, most in (
        ("sequences", inside, depth),
        ("tokens", used, row_length),
        ("predictions", masked, most_predictions),
    ):
        if (found > most).any():
            row = int(np.argmax(found))
            raise BadPacking(f"row {row} has {found[row]} {what}, {most} are allowed")


def fits(table: RowTable, lengths: np.ndarray, row_length: int, separator: int) -> bool:
    """Whether the sequences of each row fit into it, with separators."""
    used = np.add.reduceat(lengths[table.sequences], table.first[:-1])
    return bool((used + separator * (np.diff(table.first) - 1) <= row_length).all())


def packed_rows(lengths: np.ndarray, row_length: int, *, depth: int, separator: int, seed: int) -> RowTable:
    """Packs sequences of these lengths. Which of the sequences of equal length come together is random, but
    depends on `seed` alone."""
    counts = np.bincount(lengths, minlength=row_length + 1)
    packing = pack(counts.tolist(), row_length, depth=depth, separator=separator)
    inside = [np.full(number, len(kind)) for number, kind in packing.kinds]
    wanted = [np.tile(np.array(kind, dtype=np.uint16), number) for number, kind in packing.kinds]
    shuffled = IndexPermutation(len(lengths), int(derive_key(seed, _ASSIGN_STREAM)))(np.arange(len(lengths)))
    by_length = shuffled[np.argsort(lengths[shuffled].astype(np.uint16), kind="stable")]
    sequences = np.empty(len(lengths), dtype=np.int32)
    sequences[np.argsort(np.concatenate(wanted), kind="stable")] = by_length
    return RowTable(np.concatenate([[0], np.cumsum(np.concatenate(inside))]), sequences)


class PackedDataset(SampleDataset):
    """Rows of a table over the sequences of another dataset; a sample is a row.

    A sequence is masked as in the other dataset, in the same epoch: packing changes nothing about it.
    """

    unit = "rows"

    def __init__(
        self,
        sequences: SampleDataset,
        table: RowTable,
        *,
        row_length: int,
        depth: int,
        separator: int,
        mask_tokens: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        super().__init__(len(table), seed=seed, shuffle=shuffle)
        self.pad_id = sequences.pad_id
        self.sequence_length, self.mask_tokens, self.depth = row_length, mask_tokens, depth
        self.num_sequences = len(table.sequences)
        self._sequences, self._table, self._separator = sequences, table, separator

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        starts = self._table.first[indices]
        inside = self._table.first[indices + 1] - starts
        rows = np.repeat(np.arange(len(indices)), inside)
        slots = np.arange(len(rows)) - np.repeat(np.cumsum(inside) - inside, inside)
        numbers = self._table.sequences[starts[rows] + slots].astype(np.int64)
        alone = [field.numpy() for field in self._sequences.fetch(numbers, epochs[rows])]
        batch = [field.numpy() for field in self.padding(len(indices))]
        _place(alone, batch, rows, slots, self._separator)
        return tuple(torch.from_numpy(field) for field in batch)

    def padding(self, rows: int) -> Batch:
        ids, _, types, positions, labels, _ = super().padding(rows)
        firsts = torch.zeros((rows, self.depth), dtype=torch.int32)
        next_labels = torch.full((rows, self.depth), IGNORED_LABEL, dtype=torch.int32)
        return (
            ids,
            torch.zeros_like(ids),
            types,
            positions,
            labels,
            next_labels,
            torch.zeros_like(ids),
            firsts,
        )

    def token_counts(self) -> np.ndarray:
        return self._sequences.token_counts()


def _place(
    alone: List[np.ndarray], batch: List[np.ndarray], rows: np.ndarray, slots: np.ndarray, separator: int
) -> None:
    """Writes N sequences, in the order of BATCH_FIELDS, into empty rows, in the order of PACKED_FIELDS.

    :param rows, slots: int64 [N], ascending: the row of each sequence and its number there, from 0 on.
    """
    ids, mask, types, positions, labels, next_labels = alone
    starts = _before(mask.sum(axis=1) + separator, slots)
    sequence, place = np.nonzero(mask)
    row, column = rows[sequence], starts[sequence] + place
    for field, values in zip(
        (batch[0], batch[1], batch[2], batch[6]),
        (ids[sequence, place], slots[sequence] + 1, types[sequence, place], place),
    ):
        field[row, column] = values
    batch[5][rows, slots], batch[7][rows, slots] = next_labels, starts

    used = labels != IGNORED_LABEL
    sequence, prediction = np.nonzero(used)
    # A sequence's predictions may have gaps; those of a row have none.
    order = np.cumsum(used, axis=1)[sequence, prediction] - 1
    slot = _before(used.sum(axis=1), slots)[sequence] + order
    batch[3][rows[sequence], slot] = positions[sequence, prediction] + starts[sequence]
    batch[4][rows[sequence], slot] = labels[sequence, prediction]


def _before(sizes: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The sum of the sizes before each sequence in its row, int64 [N]."""
    before = np.cumsum(sizes) - sizes
    firsts = np.flatnonzero(slots == 0)
    return np.asarray(before - np.repeat(before[firsts], np.diff(np.append(firsts, len(slots)))))


def padding_note(lengths: np.ndarray, table: RowTable, row_length: int, name: str) -> Tuple[str, float]:
    """A line for the log on a split: padding before and after; and the mean sequences of a row."""
    tokens, rows = int(lengths.sum()), len(table)
    ratio = len(lengths) / rows
    before, after = (1 - tokens / (number * row_length) for number in (len(lengths), rows))
    return (
        f"packing, {name}: {len(lengths):,} sequences in {rows:,} rows of {row_length} tokens, "
        f"{ratio:.3f} in a row; padding {before:.1%} before, {after:.1%} after",
        ratio,
    )
