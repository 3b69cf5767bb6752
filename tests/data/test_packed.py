"""Packed batches hold the sequences of the unpacked ones, token for token, and give the same losses."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

import numpy as np
import pytest
import torch

from data.batches import Batch, EvaluationDataset, SampleDataset, batch_of, blank_batch, collate
from data.packed import PACKED_FIELDS, PackedDataset, packed_rows
from model import ModelConfig, PretrainingModel
from tests.model.builders import BERT, GROUPBERT, perturb

LENGTH, MASKS, SEPARATOR = 24, 4, 3


class Sequences(SampleDataset):
    """Random sequences of 5 to 24 tokens, whose masks depend on the epoch and may have gaps."""

    sequence_length, mask_tokens, pad_id = LENGTH, MASKS, 0

    def __init__(self, number: int = 60) -> None:
        super().__init__(number, seed=0, shuffle=False)
        self.lengths = np.random.default_rng(1).integers(5, LENGTH + 1, number)

    def sizes(self) -> Tuple[np.ndarray, np.ndarray]:
        return self.lengths, np.full(self.num_examples, 2)

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        rows: List[List[np.ndarray]] = []
        for index, epoch in zip(indices.tolist(), epochs.tolist()):
            draw, length = np.random.default_rng([index, epoch]), int(self.lengths[index])
            ids = np.where(np.arange(LENGTH) < length, 5 + (index * 31 + np.arange(LENGTH) * 7) % 90, 0)
            masked = np.sort(draw.choice(length, 2, replace=False))
            labels = np.full(MASKS, -100)
            labels[[1, 3]] = ids[masked]
            ids[masked] = 4
            positions = np.zeros(MASKS, dtype=int)
            positions[[1, 3]] = masked
            real = (np.arange(LENGTH) < length).astype(int)
            types = real * (np.arange(LENGTH) >= length // 2)
            rows.append([ids, real, types, positions, labels, np.array(index % 2)])
        return batch_of([np.stack(field) for field in zip(*rows)])


def pack(depth: int, separator: int, *, shuffle: bool = False) -> Tuple[Sequences, PackedDataset]:
    alone = Sequences()
    table = packed_rows(alone.lengths, LENGTH, depth=depth, separator=separator, seed=3)
    most = max(MASKS, 2 * depth)
    return alone, PackedDataset(
        alone,
        table,
        row_length=LENGTH,
        depth=depth,
        separator=separator,
        mask_tokens=most,
        seed=3,
        shuffle=shuffle,
    )


@pytest.mark.parametrize("depth, separator", [(2, 0), (3, 3), (4, 0)])
def test_rows_hold_each_sequence_once_token_for_token(depth: int, separator: int) -> None:
    alone, packed = pack(depth, separator)
    epoch = 2
    first = epoch * len(packed)
    ids, numbers, types, positions, labels, next_labels, places, starts = (
        field.numpy() for field in collate(packed.__getitems__(range(first, first + len(packed))))
    )
    expected = collate(alone.__getitems__(range(epoch * 60, epoch * 60 + 60)))
    wanted = {
        tuple(row[: int(length)].tolist()): index
        for index, (row, length) in enumerate(zip(expected[0], alone.lengths))
    }
    seen = []
    for row in range(len(packed)):
        inside = int((next_labels[row] != -100).sum())
        assert numbers[row].max() == inside
        for slot in range(inside):
            where = np.flatnonzero(numbers[row] == slot + 1)
            index = wanted[tuple(ids[row, where].tolist())]
            seen.append(index)
            size = len(where)
            assert where.tolist() == list(range(starts[row, slot], starts[row, slot] + size))
            assert places[row, where].tolist() == list(range(size))
            assert types[row, where].tolist() == expected[2][index, :size].tolist()
            assert next_labels[row, slot] == expected[5][index]
            ours = (labels[row] != -100) & (numbers[row, positions[row]] == slot + 1)
            used = expected[4][index] != -100
            assert (positions[row, ours] - starts[row, slot]).tolist() == expected[3][index, used].tolist()
            assert labels[row, ours].tolist() == expected[4][index, used].tolist()
        if separator and inside > 1:
            ends = [np.flatnonzero(numbers[row] == slot + 1).max() for slot in range(inside - 1)]
            assert [int(start - end - 1) for end, start in zip(ends, starts[row, 1:inside])] == [3] * len(
                ends
            )
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("depth", [2, 3, 24])
@pytest.mark.parametrize("config, separator", [(BERT, 0), (GROUPBERT, SEPARATOR)])
def test_a_packed_epoch_has_the_losses_and_gradients_of_the_unpacked_one(
    config: ModelConfig, separator: int, depth: int
) -> None:
    alone, packed = pack(depth, separator)
    model = PretrainingModel(replace(config, max_position_embeddings=LENGTH))
    perturb(model)
    results = []
    for dataset in (alone, packed):
        model.zero_grad()
        outputs = model(*collate(dataset.__getitems__(range(len(dataset)))))
        outputs[0].backward()
        results.append([*outputs, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    assert float(results[1][6]) == 60  # sequences


def test_a_row_is_the_same_in_any_batch_and_epochs_have_other_masks() -> None:
    _, packed = pack(3, 3, shuffle=True)
    numbers = [5, 0, len(packed) + 3, 2]
    together = collate(packed.__getitems__(numbers))
    for row, number in enumerate(numbers):
        for field, single in zip(together, packed[number]):
            assert torch.equal(field[row], single)
    rows = len(packed)
    epochs = [collate(packed.__getitems__(range(epoch * rows, epoch * rows + rows))) for epoch in (0, 1)]
    assert sorted(map(tuple, epochs[0][1].tolist())) == sorted(map(tuple, epochs[1][1].tolist()))
    assert sorted(map(tuple, epochs[0][3].tolist())) != sorted(map(tuple, epochs[1][3].tolist()))


def test_the_rows_that_fill_up_an_evaluation_have_no_labels() -> None:
    _, packed = pack(3, 0)
    whole = EvaluationDataset(packed, 16)
    batch = collate(whole.__getitems__(range(len(packed) - 1, len(whole))))
    assert len(batch) == len(PACKED_FIELDS)
    assert all((field[1:] == -100).all() for field in (batch[4], batch[5]))
    model = PretrainingModel(GROUPBERT)
    assert all(torch.isfinite(output) for output in model(*(field[1:] for field in batch)))


def test_a_blank_batch_has_the_shapes_of_the_data() -> None:
    _, packed = pack(3, 0)
    batch = collate(packed.__getitems__(range(4)))
    blank = blank_batch(4, LENGTH, packed.mask_tokens, 3)
    assert [field.shape for field in blank] == [field.shape for field in batch]
    assert {field.dtype for field in (*blank, *batch)} == {torch.int32}
