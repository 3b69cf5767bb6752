"""Examples as the model gets them: layout, masks, source text; and the unigram entropy."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Callable, List

import numpy as np
import pytest
import torch

from data.batches import SampleDataset, collate
from data.corpora import Corpus
from data.dataset import PretrainingDataset, unigram_entropy
from data.files import DataError
from data.make_shards import PairParameters, prepare_shards
from data.masking import IGNORED_LABEL, Masker
from data.shards import RECORD, ShardedExamples, open_shards, write_shard
from data.tokenizer import Tokenizer

SEQUENCE_LENGTH, MASK_TOKENS = 64, 10


@pytest.fixture(scope="module")
def examples(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> ShardedExamples:
    parameters = PairParameters(SEQUENCE_LENGTH, 0.1, validation_fraction=0.0, seed=1)
    cache: Path = tmp_path_factory.mktemp("cache")
    return open_shards(
        prepare_shards(corpus, tokenizer, parameters, cache, workers=0, progress=False), "train"
    )


@pytest.fixture
def make(examples: ShardedExamples, tokenizer: Tokenizer) -> Callable[..., PretrainingDataset]:
    def make_dataset(seed: int = 5, **options: bool) -> PretrainingDataset:
        masker = Masker(
            mask_id=tokenizer.mask_id,
            special_ids=tokenizer.special_ids,
            is_continuation=tokenizer.is_continuation,
            mask_tokens=MASK_TOKENS,
        )
        return PretrainingDataset(
            examples,
            masker,
            sequence_length=SEQUENCE_LENGTH,
            mask_tokens=MASK_TOKENS,
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            cls_id=tokenizer.cls_id,
            sep_id=tokenizer.sep_id,
            special_ids=tokenizer.special_ids,
            seed=seed,
            **options,
        )

    return make_dataset


def unmask(batch: tuple) -> torch.Tensor:
    input_ids, positions, labels = batch[0].clone(), batch[3].long(), batch[4]
    for row in range(len(input_ids)):
        used = labels[row] != IGNORED_LABEL
        input_ids[row, positions[row][used]] = labels[row][used]
    return input_ids


def test_rows_are_the_stored_pairs(
    make: Callable[..., PretrainingDataset], examples: ShardedExamples, tokenizer: Tokenizer
) -> None:
    dataset = make(shuffle=False)
    batch = collate(dataset.__getitems__(range(len(examples))))
    ids = unmask(batch)
    pairs = examples.read(np.arange(len(examples)))
    for row, (tokens_a, tokens_b, is_random_next) in enumerate(pairs):
        first = [tokenizer.cls_id, *tokens_a.tolist(), tokenizer.sep_id]
        second = [*tokens_b.tolist(), tokenizer.sep_id]
        padding = SEQUENCE_LENGTH - len(first) - len(second)
        assert ids[row].tolist() == first + second + [tokenizer.pad_id] * padding
        assert batch[1][row].tolist() == [1] * (SEQUENCE_LENGTH - padding) + [0] * padding
        assert batch[2][row].tolist() == [0] * len(first) + [1] * len(second) + [0] * padding
        assert int(batch[5][row]) == is_random_next
    assert not torch.equal(ids, batch[0])


def test_masks_change_by_epoch_or_stay(make: Callable[..., PretrainingDataset]) -> None:
    for dynamic in (True, False):
        dataset = make(shuffle=False, dynamic_masking=dynamic)
        n = dataset.num_examples
        epochs = [collate(dataset.__getitems__(range(epoch * n, (epoch + 1) * n))) for epoch in range(3)]
        texts = [unmask(epoch) for epoch in epochs]
        assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
        for earlier, later in ((0, 1), (1, 2), (0, 2)):
            same = (epochs[earlier][3] == epochs[later][3]).all(dim=1).float().mean()
            assert same < 0.1 if dynamic else same == 1


def test_static_masks_are_those_of_the_first_epoch(make: Callable[..., PretrainingDataset]) -> None:
    dynamic, static = make(dynamic_masking=True), make(dynamic_masking=False)
    first = range(static.num_examples)
    for ours, theirs in zip(collate(dynamic.__getitems__(first)), collate(static.__getitems__(first))):
        assert torch.equal(ours, theirs)


def test_a_mask_belongs_to_the_example_not_to_its_place(make: Callable[..., PretrainingDataset]) -> None:
    rows = []
    for shuffle in (True, False):
        dataset = make(shuffle=shuffle)
        batch = collate(dataset.__getitems__(range(dataset.num_examples)))
        rows.append(torch.cat(batch[:5], dim=1).tolist())
    assert rows[0] != rows[1]
    assert sorted(rows[0]) == sorted(rows[1])


def test_seeds_give_other_masks_and_orders(make: Callable[..., PretrainingDataset]) -> None:
    one, two = (collate(make(seed=seed, shuffle=False).__getitems__(range(100))) for seed in (1, 2))
    assert torch.equal(unmask(one), unmask(two)) and not torch.equal(one[0], two[0])
    one, two = (collate(make(seed=seed).__getitems__(range(100))) for seed in (1, 2))
    assert not torch.equal(unmask(one), unmask(two))


def test_pickled_for_a_worker_it_gives_the_same(make: Callable[..., PretrainingDataset]) -> None:
    dataset = make()
    content = pickle.dumps(dataset)
    assert len(content) < 100_000
    for ours, theirs in zip(pickle.loads(content)[123], dataset[123]):
        assert torch.equal(ours, theirs)


def test_token_counts_are_those_of_the_text(
    make: Callable[..., PretrainingDataset], tokenizer: Tokenizer
) -> None:
    dataset = make(shuffle=False)
    ids = unmask(collate(dataset.__getitems__(range(dataset.num_examples)))).numpy()
    expected = np.bincount(ids.ravel(), minlength=tokenizer.vocab_size)
    expected[list(tokenizer.special_ids)] = 0
    assert dataset.token_counts().tolist() == expected.tolist()


class Counted(SampleDataset):
    def __init__(self, counts: List[int]) -> None:
        super().__init__(1, seed=0, shuffle=False)
        self._counts = np.array(counts)

    def token_counts(self) -> np.ndarray:
        return self._counts


@pytest.mark.parametrize(
    "counts, entropy",
    [
        ([5], 0.0),
        ([3, 3], math.log(2)),
        ([1] * 100, math.log(100)),
        ([0, 2, 0, 1, 1], 1.5 * math.log(2)),
    ],
)
def test_known_entropies(counts: List[int], entropy: float) -> None:
    assert unigram_entropy(Counted(counts)) == pytest.approx(entropy, abs=1e-12)


def test_nothing_has_no_entropy() -> None:
    with pytest.raises(DataError):
        unigram_entropy(Counted([0, 0]))


@pytest.mark.parametrize(
    ("record", "tokens", "found"),
    [
        ((0, 40, 40, 0), [5] * 80, "83 tokens, more than sequence_length 64"),
        ((0, 2, 1, 0), [5, 10**9, 5], "token id 1000000000"),
        ((0, 2, 1, 0), [5, 2**32 - 1, 5], "token id -1"),
        ((0, 2, 1, 7), [5, 5, 5], "a label that isn't 0 or 1"),
    ],
)
def test_a_shard_that_is_consistent_but_wrong_is_named(
    tmp_path: Path, tokenizer: Tokenizer, record: tuple, tokens: List[int], found: str
) -> None:
    good = (0, 1, 1, 0)
    write_shard(
        tmp_path / "one.shard", np.array([good, record], dtype=RECORD), np.array(tokens, dtype="<u4"), {}
    )
    masker = Masker(
        mask_id=tokenizer.mask_id,
        special_ids=tokenizer.special_ids,
        is_continuation=tokenizer.is_continuation,
        mask_tokens=MASK_TOKENS,
    )
    dataset = PretrainingDataset(
        ShardedExamples([tmp_path / "one.shard"]),
        masker,
        sequence_length=SEQUENCE_LENGTH,
        mask_tokens=MASK_TOKENS,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        special_ids=tokenizer.special_ids,
        seed=1,
        shuffle=False,
    )
    with pytest.raises(DataError, match=f"one.shard is damaged: example 1 has .*{found}"):
        dataset.__getitems__([1])
