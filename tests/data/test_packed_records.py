"""Graphcore's packed TFRecords: their sequences, one by one, and the errors of bad ones."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch

from data.batches import collate
from data.dataset import TfRecordPretrainingDataset
from data.files import DataError
from data.packed import PackedDataset
from data.packed_records import PackedRecords
from data.prepare import PretrainingDataOptions, prepare_pretraining_data
from data.tfrecord import TfRecordFile
from tests.data.test_tfrecord import SAMPLES, message, record

PACKED = SAMPLES / "packing" / "sample_text_packed.tfrecord"
needs_packed = pytest.mark.skipif(not PACKED.is_file(), reason=f"needs {PACKED}")


def row() -> Dict[str, List[int]]:
    """[CLS] 10 11 [SEP] 12 [SEP] and [CLS] 20 [SEP] 21 [SEP] in a row of 12, of up to three sequences."""
    return {
        "packed_input_ids": [10, 3, 2, 12, 2, 20, 2, 21, 2, 0, 1, 1],
        "packed_input_mask": [1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 2, 1],
        "packed_segment_ids": [0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0],
        "packed_position_ids": [1, 2, 3, 4, 5, 1, 2, 3, 4, 0, 0, 0],
        "packed_masked_lm_positions": [1, 7, 0, 0],
        "packed_masked_lm_ids": [11, 22, 0, 0],
        "packed_next_sentence_labels": [0, 0, 1],
    }


def write(folder: Path, *rows: Dict[str, List[int]]) -> TfRecordFile:
    path = folder / "packed.tfrecord"
    path.write_bytes(b"".join(record(message(each)) for each in rows))
    return TfRecordFile(str(path))


def opened(records: TfRecordFile, **changes: Any) -> PackedRecords:
    given = {"sequence_length": 12, "mask_tokens": 4, "depth": 3, "vocab_size": 30, "seed": 0, **changes}
    return PackedRecords(records, **given)


def test_a_row_becomes_the_sequences_that_it_was_made_of(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, row()))
    ids, mask, types, positions, labels, next_labels = collate(dataset.__getitems__([0, 1]))
    assert ids.tolist() == [[1, 10, 3, 2, 12, 2] + [0] * 6, [1, 20, 2, 21, 2] + [0] * 7]
    assert mask.tolist() == [[1] * 6 + [0] * 6, [1] * 5 + [0] * 7]
    assert types.tolist() == [[0, 0, 0, 0, 1, 1] + [0] * 6, [0, 0, 0, 1, 1] + [0] * 7]
    assert positions.tolist() == [[2, 0, 0, 0], [3, 0, 0, 0]]
    assert labels.tolist() == [[11, -100, -100, -100], [22, -100, -100, -100]]
    assert next_labels.tolist() == [1, 0]
    counts = dataset.token_counts()
    assert {token: count for token, count in enumerate(counts.tolist()) if count} == {
        10: 1, 11: 1, 12: 1, 20: 1, 22: 1
    }  # fmt: skip


def test_workers_get_the_sequences_without_a_scan(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, row()))
    copy = pickle.loads(pickle.dumps(dataset))
    for one, other in zip(dataset[1], copy[1]):
        assert torch.equal(one, other)


def change(name: str, place: int, value: int) -> Dict[str, List[int]]:
    changed = row()
    changed[f"packed_{name}"][place] = value
    return changed


@pytest.mark.parametrize(
    "bad, options, words",
    [
        (row(), {"sequence_length": 16}, "set sequence_length to 12"),
        (row(), {"depth": 1}, "has 2 sequences, .* at most 1"),
        (row(), {"mask_tokens": 1}, "predicts 2 tokens, .* at most 1 .*raise mask_tokens by 1"),
        (row(), {"vocab_size": 22}, "token id 22 in packed_masked_lm_ids"),
        (change("position_ids", 1, 3), {}, "positions in sequence 1"),
        (change("input_mask", 11, 0), {}, "positions in sequence 1"),
        (change("next_sentence_labels", 2, 2), {}, "must be 0 to 1"),
        (change("masked_lm_positions", 0, 9), {}, "predicts a token of the padding"),
        ({**row(), "packed_next_sentence_labels": [1]}, {}, "first token of sequence 2 at 10"),
        ({**row(), "packed_masked_lm_ids": [11]}, {}, "4 packed_masked_lm_positions"),
    ],
)
def test_a_bad_row_is_named_at_opening(
    bad: Dict[str, List[int]], options: Dict[str, int], words: str, tmp_path: Path
) -> None:
    rows = [bad] if options else [row(), bad]
    with pytest.raises(DataError, match=f"record {len(rows) - 1} .*{words}"):
        opened(write(tmp_path, *rows), **options)


def test_packed_and_unpacked_files_are_not_confused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--packed-data --max-sequences-per-pack 3 --mask-tokens 2"):
        TfRecordPretrainingDataset(
            write(tmp_path, row()), sequence_length=12, mask_tokens=4, vocab_size=30, seed=0
        )
    unpacked = {name: [0] * 12 for name in ("input_ids", "input_mask", "segment_ids")}
    unpacked.update(masked_lm_positions=[0], masked_lm_ids=[0], next_sentence_labels=[0])
    with pytest.raises(DataError, match=r"is not packed.*--no-packed-data"):
        opened(write(tmp_path, unpacked))


@needs_packed
def test_the_published_rows_hold_the_published_sequences() -> None:
    """Sequences of both files are made of one text, so the sets of unmasked beginnings overlap; here each
    sequence is held against its own row: nothing is lost, nothing is added."""
    records = TfRecordFile(str(PACKED))
    dataset = PackedRecords(records, sequence_length=128, mask_tokens=22, depth=3, vocab_size=30522, seed=0)
    assert (len(records), len(dataset), len(dataset.rows())) == (44, 45, 44)
    batch = [field.numpy() for field in collate(dataset.__getitems__(range(45)))]
    assert (batch[0][:, 0] == 101).all()
    assert (batch[0][np.arange(45), batch[1].sum(1) - 1] == 102).all()
    stored = [records.read_packed(number) for number in range(44)]
    for name, field, unused in (("input_ids", 0, 0), ("masked_lm_ids", 4, -100), ("segment_ids", 2, 0)):
        theirs = sorted(np.concatenate([each[f"packed_{name}"] for each in stored]).tolist())
        ours = sorted(value for value in batch[field].ravel().tolist() if value != unused)
        assert ours == [value for value in theirs if value != 0]
    segments = [each["packed_next_sentence_labels"].sum() for each in stored]
    assert batch[5].sum() == sum(segments)


@needs_packed
@pytest.mark.parametrize("separator", [0, 3])
def test_published_rows_are_kept_unless_a_convolution_needs_room(separator: int, tmp_path: Path) -> None:
    data = prepare_pretraining_data(
        PretrainingDataOptions(
            corpus=str(PACKED),
            sequence_length=128,
            vocab_size=30522,
            packed_data=True,
            pack_depth=3,
            separator_tokens=separator,
            validation_fraction=0.2,
        ),
        cache_folder=tmp_path,
        progress=False,
    )
    assert isinstance(data.train, PackedDataset) and isinstance(data.validation, PackedDataset)
    assert data.train.num_sequences + data.validation.num_sequences == 45
    # One row has 127 of 128 tokens in two sequences.
    assert data.train.num_examples + data.validation.num_examples == (44 if separator == 0 else 45)
    assert any("packed again" in note for note in data.statistics.notes) == (separator == 3)
    assert sum("padding" in note for note in data.statistics.notes) == 2
    numbers = collate(data.train.__getitems__(range(len(data.train))))[1]
    changes = (numbers[:, 1:] != numbers[:, :-1]) & (numbers[:, 1:] > 1)
    if separator:
        assert (numbers[:, :-1][changes] == 0).all()
