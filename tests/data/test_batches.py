"""The sample order depends on the sample number alone; padding doesn't affect an evaluation."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.batches import (
    BATCH_FIELDS,
    Batch,
    EvaluationDataset,
    SampleDataset,
    SampleStream,
    batch_of,
    collate,
    require_examples,
)
from data.files import DataError


class Numbered(SampleDataset):
    """Example i of epoch e has input_ids [i, e] and label i % 2."""

    sequence_length, mask_tokens, pad_id = 2, 1, 9

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        tokens = np.stack([indices, epochs], axis=1)
        ones = np.ones_like(tokens)
        return batch_of([tokens, ones, 0 * ones, ones[:, :1], tokens[:, :1], indices % 2])


def seen(loader: DataLoader) -> List[List[int]]:
    return [row for batch in loader for row in batch[0].tolist()]


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    dataset = Numbered(50, seed=1, shuffle=True)
    rows = collate(dataset.__getitems__(range(150)))[0]
    orders = rows[:, 0].reshape(3, 50).tolist()
    assert rows[:, 1].tolist() == [0] * 50 + [1] * 50 + [2] * 50
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in (*orders, range(50))}) == 4
    other = collate(Numbered(50, seed=2, shuffle=True).__getitems__(range(50)))[0][:, 0].tolist()
    assert other != orders[0]


def test_without_shuffling_the_order_is_the_datas() -> None:
    dataset = Numbered(5, seed=1, shuffle=False)
    assert collate(dataset.__getitems__(range(7)))[0].tolist() == [
        [0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [0, 1], [1, 1]
    ]  # fmt: skip


def test_any_access_gives_the_same_sample() -> None:
    """One at a time, in batches of any size and order, and across epochs."""
    dataset = Numbered(7, seed=3, shuffle=True)
    whole = collate(dataset.__getitems__(range(40)))
    numbers = [39, 0, 8, 8, 20, 6, 7]
    for fields in (collate([dataset[k] for k in numbers]), collate(dataset.__getitems__(numbers))):
        assert all(torch.equal(field, expected[numbers]) for field, expected in zip(fields, whole))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("collate_fn", [collate, None])
def test_loaders_give_the_same_for_any_number_of_workers(workers: int, collate_fn: object) -> None:
    dataset = Numbered(20, seed=4, shuffle=True)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=SampleStream(start=6, batch_size=4, num_batches=10),
        num_workers=workers,
        collate_fn=collate_fn,  # type: ignore[arg-type]
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 10
    assert all(len(batch) == len(BATCH_FIELDS) for batch in batches)
    assert all(field.dtype == torch.int32 for batch in batches for field in batch)
    assert [field.shape for field in batches[0]] == [(4, 2), (4, 2), (4, 2), (4, 1), (4, 1), (4,)]
    assert seen(loader) == collate(dataset.__getitems__(range(6, 46)))[0].tolist()


def test_a_resumed_stream_continues() -> None:
    whole = list(SampleStream(0, batch_size=4, num_batches=10))
    assert whole[:12] + list(SampleStream(12, batch_size=4, num_batches=7)) == whole == list(range(40))


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_processes_share_a_global_batch_in_slices(world_size: int) -> None:
    streams = [SampleStream(3, 4, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    slices = np.array([list(stream) for stream in streams]).reshape(world_size, 6, 4)
    assert slices.transpose(1, 0, 2).ravel().tolist() == list(range(3, 3 + world_size * 24))
    assert all(len(stream) == 24 for stream in streams)


def test_slices_are_dealt_out_in_turn() -> None:
    """Two processes with one replica each get the samples of two replicas in one process: [D, A, R, b]."""
    streams = [list(SampleStream(6, 12, 2, slice_size=3, rank=rank, world_size=2)) for rank in range(2)]
    whole = np.arange(6, 6 + 48).reshape(8, 2, 3)
    for rank, stream in enumerate(streams):
        assert stream == whole[:, rank].ravel().tolist()
    with pytest.raises(ValueError, match="slices of 5"):
        SampleStream(0, 12, 1, slice_size=5)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_is_refused(rank: int) -> None:
    with pytest.raises(ValueError):
        SampleStream(0, 1, 1, rank=rank, world_size=2)


@pytest.mark.parametrize("examples, batch_size, length", [(10, 4, 12), (8, 4, 8), (1, 4, 4), (5, 1, 5)])
def test_evaluation_sees_every_example_once_and_padding(examples: int, batch_size: int, length: int) -> None:
    dataset = Numbered(examples, seed=0, shuffle=False)
    evaluation = EvaluationDataset(dataset, batch_size)
    assert len(evaluation) == length
    batches = list(DataLoader(evaluation, batch_size=batch_size, collate_fn=collate))
    assert [len(batch[0]) for batch in batches] == [batch_size] * (length // batch_size)
    ids, attention, types, positions, labels, next_sentence = (torch.cat(field) for field in zip(*batches))
    assert ids[:examples, 0].tolist() == list(range(examples))
    assert (ids[examples:] == dataset.pad_id).all()
    assert attention[examples:].tolist() == [[1, 0]] * (length - examples)
    assert (labels[examples:] == -100).all() and (next_sentence[examples:] == -100).all()
    assert not types[examples:].any() and not positions[examples:].any()
    for number in (0, length - 1):
        single = evaluation[number]
        assert all(torch.equal(field, whole[number]) for field, whole in zip(single, (
            ids, attention, types, positions, labels, next_sentence
        )))  # fmt: skip
    with pytest.raises(IndexError):
        evaluation[length]


def test_nothing_to_evaluate_or_read() -> None:
    empty = Numbered(0, seed=0, shuffle=True)
    with pytest.raises(DataError, match="no example to evaluate on"):
        EvaluationDataset(empty, 4)
    with pytest.raises(IndexError):
        empty[0]
    with pytest.raises(IndexError):
        Numbered(3, seed=0, shuffle=True)[-1]


def test_too_few_examples_are_an_error_with_numbers() -> None:
    dataset = Numbered(10, seed=0, shuffle=True)
    require_examples(dataset, 10, "one step")
    with pytest.raises(DataError, match=r"one step needs 12 examples, the data has 10 \(2 too few\)"):
        require_examples(dataset, 12, "one step")
