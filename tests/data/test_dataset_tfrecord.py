"""TFRecord examples keep the masks of the file; those that contradict the configuration are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
import torch

from data.batches import collate
from data.dataset import TfRecordPretrainingDataset
from data.files import DataError
from data.tfrecord import TfRecordFile
from tests.data.test_tfrecord import SAMPLES, message, needs_samples, record

CLS, SEP, MASK = 1, 2, 3


def make_features(number: int) -> Dict[str, List[int]]:
    """[CLS] 10 n [SEP] 12 [SEP] and two paddings; n + 20 at position 2 is masked, one prediction unused."""
    return {
        "input_ids": [CLS, 10, MASK, SEP, 12, SEP, 0, 0],
        "input_mask": [1, 1, 1, 1, 1, 1, 0, 0],
        "segment_ids": [0, 0, 0, 0, 1, 1, 0, 0],
        "masked_lm_positions": [2, 0],
        "masked_lm_ids": [20 + number, 0],
        "next_sentence_labels": [number % 2],
    }


def write(path: Path, features: List[Dict[str, List[int]]]) -> TfRecordFile:
    path.write_bytes(b"".join(record(message(example)) for example in features))
    return TfRecordFile(str(path))


def open_dataset(records: TfRecordFile, **options: object) -> TfRecordPretrainingDataset:
    defaults = {"sequence_length": 8, "mask_tokens": 2, "vocab_size": 100, "seed": 3, "shuffle": False}
    return TfRecordPretrainingDataset(records, **{**defaults, **options})  # type: ignore[arg-type]


def test_records_become_batches(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "a.tfrecord", [make_features(n) for n in range(5)]))
    batch = collate(dataset.__getitems__([3, 4, 5]))
    assert all(field.dtype == torch.int32 for field in batch)
    assert batch[0].tolist() == [make_features(0)["input_ids"]] * 3
    assert batch[1].tolist() == [make_features(0)["input_mask"]] * 3
    assert batch[2].tolist() == [make_features(0)["segment_ids"]] * 3
    assert batch[3].tolist() == [[2, 0]] * 3
    # Sample 5 is example 0 of the second epoch, with the same mask; 0 is the files' "unused".
    assert batch[4].tolist() == [[23, -100], [24, -100], [20, -100]]
    assert batch[5].tolist() == [1, 0, 0]


def test_shuffled_epochs_see_every_record(tmp_path: Path) -> None:
    dataset = open_dataset(
        write(tmp_path / "a.tfrecord", [make_features(n) for n in range(30)]), shuffle=True
    )
    labels = collate(dataset.__getitems__(range(60)))[4][:, 0].tolist()
    assert sorted(labels[:30]) == sorted(labels[30:]) == list(range(20, 50))
    assert labels[:30] != labels[30:] != sorted(labels[:30])
    again = pickle.loads(pickle.dumps(dataset))
    assert collate(again.__getitems__(range(60)))[4][:, 0].tolist() == labels


def test_the_split_parts_the_records(tmp_path: Path) -> None:
    records = write(tmp_path / "a.tfrecord", [make_features(n % 60) for n in range(60)])
    parts = []
    for held_out in (False, True):
        dataset = open_dataset(records, validation_fraction=0.3, held_out=held_out)
        parts.append(set(collate(dataset.__getitems__(range(len(dataset))))[4][:, 0].tolist()))
    assert not parts[0] & parts[1] and parts[0] | parts[1] == set(range(20, 80))
    assert 8 <= len(parts[1]) <= 30


def test_token_counts_put_masked_tokens_back(tmp_path: Path) -> None:
    """More records than one counting pass, and one that is only padding."""
    padding = {name: [0] * len(values) for name, values in make_features(0).items()}
    records = write(tmp_path / "a.tfrecord", [padding, *(make_features(n % 4) for n in range(400))])
    counts = open_dataset(records).token_counts()
    assert {token: int(counts[token]) for token in np.flatnonzero(counts)} == {
        10: 400, 12: 400, 20: 100, 21: 100, 22: 100, 23: 100
    }  # fmt: skip


@pytest.mark.parametrize(
    "options, message_part",
    [
        ({"sequence_length": 16}, "length 8, but sequence_length is 16"),
        ({"mask_tokens": 3}, "length 2, but mask_tokens is 3"),
        ({"vocab_size": 20}, "token id 20 in masked_lm_ids, but vocab_size is 20"),
        ({"vocab_size": 12}, "token id 12 in input_ids"),
    ],
)
def test_what_does_not_fit_is_refused_at_opening(
    tmp_path: Path, options: Dict[str, int], message_part: str
) -> None:
    records = write(tmp_path / "a.tfrecord", [make_features(0)])
    with pytest.raises(DataError, match=message_part) as caught:
        open_dataset(records, **options)
    assert "a.tfrecord" in str(caught.value)


def test_a_later_record_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    bad = dict(make_features(1), input_ids=[CLS, 10, MASK, SEP, 100, SEP, 0, 0])
    dataset = open_dataset(write(tmp_path / "a.tfrecord", [make_features(0), bad]))
    with pytest.raises(DataError, match=r"record 1 at .*a\.tfrecord.* token id 100"):
        dataset[1]


@pytest.mark.parametrize(
    "feature, place, value",
    [
        ("masked_lm_positions", 0, 8),
        ("masked_lm_positions", 1, -1),
        ("segment_ids", 3, 2),
        ("segment_ids", 3, -1),
        ("input_mask", 0, 5),
        ("next_sentence_labels", 0, 2),
        ("next_sentence_labels", 0, -(2**40)),
        ("input_ids", 7, -1),
        ("input_ids", 7, 100),
        ("input_ids", 7, 2**32),
        ("masked_lm_ids", 1, -100),
        ("masked_lm_ids", 1, 100),
    ],
)
def test_impossible_values_are_refused_by_file_and_record(
    tmp_path: Path, feature: str, place: int, value: int
) -> None:
    """The checksums are valid: the writer made the mistake. Records are numbered per file."""
    bad = make_features(1)
    bad[feature][place] = value
    write(tmp_path / "a.tfrecord", [make_features(0)])
    write(tmp_path / "b.tfrecord", [make_features(0), bad, make_features(2)])
    dataset = open_dataset(TfRecordFile(str(tmp_path)))
    collate(dataset.__getitems__([0, 1, 3]))
    for reading in (lambda: dataset.__getitems__([0, 3, 2]), dataset.token_counts):
        with pytest.raises(DataError, match=rf"record 1 at .*b\.tfrecord' has .*{value} in {feature}"):
            reading()


@needs_samples
def test_graphcores_sample() -> None:
    records = TfRecordFile(str(SAMPLES / "sample_text.tfrecord"))
    dataset = open_dataset(records, sequence_length=128, mask_tokens=20, vocab_size=30522)
    ids, attention, types, positions, labels, next_sentence = collate(
        dataset.__getitems__(range(len(dataset)))
    )
    # bert-base-uncased: [CLS] 101, [SEP] 102, [MASK] 103
    assert (ids[:, 0] == 101).all()
    assert ((ids == 102).sum(dim=1) == 2).all()
    assert ((ids == 0) == (attention == 0)).all()
    assert (types <= attention).all()
    used = labels != -100
    seen = torch.gather(ids, 1, positions.long())[used]
    assert 0.7 < (seen == 103).float().mean() < 0.9
    assert (used.sum(dim=1) >= 1).all() and set(next_sentence.tolist()) == {0, 1}
    assert (torch.diff(positions, dim=1)[used[:, 1:]] > 0).all()
