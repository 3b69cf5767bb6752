"""TFRecord files: Graphcore's sample, and files written with the test's encoder."""

from __future__ import annotations

import contextlib
import pickle
import struct
from pathlib import Path
from typing import Dict, List, Sequence

import numpy as np
import pytest

from data import tfrecord
from data.files import DataError
from data.tfrecord import FEATURES, MessageError, TfRecordFile, crc32c, crc32c_of_many, int64_features

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "graphcore_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES} is missing")

EXTREME = [0, 1, 127, 128, 300, 2**14, 2**31 - 1, 2**63 - 1, -1, -(2**63)]


def bitwise_crc32c(data: bytes) -> int:
    """The definition of the checksum, bit by bit."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def int64_list(values: Sequence[int], packed: bool) -> bytes:
    if packed:
        return field(3, field(1, b"".join(map(varint, values))))
    return field(3, b"".join(varint(1 << 3) + varint(value) for value in values))


def message(features: Dict[str, Sequence[int]], *, packed: bool = True, extra: bytes = b"") -> bytes:
    entries = (
        field(1, field(1, name.encode()) + field(2, int64_list(values, packed)))
        for name, values in features.items()
    )
    return field(1, b"".join(entries) + extra)


def record(data: bytes) -> bytes:
    def masked(content: bytes) -> bytes:
        crc = bitwise_crc32c(content)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def example(seed: int, length: int = 16, predictions: int = 3) -> Dict[str, List[int]]:
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(0, 30522, length).tolist(),
        "input_mask": [1] * length,
        "segment_ids": rng.integers(0, 2, length).tolist(),
        "masked_lm_positions": sorted(rng.integers(0, length, predictions).tolist()),
        "masked_lm_ids": rng.integers(0, 30522, predictions).tolist(),
        "next_sentence_labels": [int(rng.integers(0, 2))],
    }


def write(file: Path, examples: Sequence[Dict[str, List[int]]], **options: object) -> List[int]:
    """Writes the file; returns each record's offset and the file's end."""
    records = [record(message(features, **options)) for features in examples]  # type: ignore[arg-type]
    file.write_bytes(b"".join(records))
    return np.cumsum([0, *map(len, records)]).tolist()


def as_lists(features: Dict[str, np.ndarray]) -> Dict[str, List[int]]:
    assert all(values.dtype == np.int64 for values in features.values())
    return {name: values.tolist() for name, values in features.items()}


@pytest.fixture(params=["crc32c_by_table", "crc32c"])
def library(request, monkeypatch):
    """With the package crc32c, which may be missing, and without it."""
    if request.param == "crc32c_by_table":
        monkeypatch.setattr(tfrecord, "by_package", None)
    else:
        package = pytest.importorskip("crc32c")
        monkeypatch.setattr(tfrecord, "by_package", package.crc32c)


def test_crc32c_has_the_values_of_rfc_3720(library):
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("length", [*range(9), 1020, 1021, 1022, 1023, 1024, 1025, 1027, 1028, 2048, 5000])
def test_crc32c_is_the_definition_at_every_length(length, library):
    data = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8).tobytes()
    assert crc32c(data) == bitwise_crc32c(data)


@pytest.mark.parametrize("shortest", [0, 4])
def test_crc32c_of_many_is_that_of_each(shortest, library):
    rng = np.random.default_rng(shortest)
    lengths = [shortest, 5, 1024, 777, 6, 4, 1025, shortest]
    messages = [rng.integers(0, 256, length, dtype=np.uint8).tobytes() for length in lengths]
    for some in (messages, messages[2:3], messages[3:5], []):
        assert crc32c_of_many(some).tolist() == [bitwise_crc32c(message) for message in some]


@pytest.mark.parametrize("packed", [True, False])
def test_examples_come_back_as_written(tmp_path, packed):
    examples = [example(seed, length=seed + 8) for seed in range(5)]
    examples[1]["masked_lm_ids"] = examples[1]["masked_lm_positions"] = EXTREME
    examples[2]["masked_lm_ids"] = examples[2]["masked_lm_positions"] = []
    write(tmp_path / "a.tfrecord", examples, packed=packed)
    records = TfRecordFile(str(tmp_path / "a.tfrecord"))
    assert len(records) == 5
    for index in (3, 0, 1, 4, 2):
        assert as_lists(records.read(index)) == examples[index]
    with pytest.raises(IndexError):
        records.read(5)


def test_other_features_are_ignored(tmp_path):
    text = field(1, field(1, b"text") + field(2, field(1, field(1, b"bytes list"))))
    floats = field(1, field(1, b"score") + field(2, field(2, field(1, struct.pack("<f", 1.5)))))
    write(tmp_path / "a.tfrecord", [{**example(0), "more": [7]}], extra=text + floats)
    features = TfRecordFile(str(tmp_path / "a.tfrecord")).read(0)
    assert tuple(features) == FEATURES
    assert as_lists(features) == example(0)


def test_folders_and_globs_count_on_through_sorted_files(tmp_path):
    (tmp_path / "more").mkdir()
    write(tmp_path / "b.tfrecord", [example(0), example(1)])
    write(tmp_path / "a.tfrecord", [example(2)])
    write(tmp_path / "more" / "c.tfrecord", [example(3)])
    (tmp_path / "aa.tfrecord").write_bytes(b"")  # an empty shard holds no record
    (tmp_path / "a.index").write_text("0 100\n")
    whole = TfRecordFile(str(tmp_path))
    assert [as_lists(whole.read(i)) for i in range(len(whole))] == [example(seed) for seed in (2, 0, 1, 3)]
    assert len(TfRecordFile(str(tmp_path / "?.tfrecord"))) == 3


def test_a_pickled_reader_reads_without_scanning_again(tmp_path):
    file = tmp_path / "a.tfrecord"
    offsets = write(file, [example(0), example(1)])
    records = TfRecordFile(str(file))
    records.read(0)
    copy = pickle.dumps(records)
    content = bytearray(file.read_bytes())
    content[8] ^= 1  # a second scan would see this checksum
    file.write_bytes(content)
    assert as_lists(pickle.loads(copy).read(1)) == example(1)
    assert offsets[1] > 0


def test_a_kept_index_serves_until_the_file_changes(tmp_path):
    file, kept = tmp_path / "a.tfrecord", tmp_path / "kept"
    write(file, [example(0), example(1)])
    for _ in range(2):
        assert len(TfRecordFile(str(file), index_folder=kept)) == 2
        assert len(list(kept.iterdir())) == 1
    write(file, [example(0), example(1), example(2)])
    assert as_lists(TfRecordFile(str(file), index_folder=kept).read(2)) == example(2)


def test_a_cut_off_record_is_named(tmp_path):
    file = tmp_path / "a.tfrecord"
    offsets = write(file, [example(0), example(1), example(2)])
    content = file.read_bytes()
    for cut in (offsets[2] + 1, offsets[2] + 11, offsets[2] + 12, offsets[2] + 50, offsets[3] - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(DataError, match=rf"record 2 at byte {offsets[2]} of .*a\.tfrecord' is cut off"):
            TfRecordFile(str(file))


def test_any_flipped_bit_is_noticed_and_the_record_named(tmp_path):
    file = tmp_path / "a.tfrecord"
    offsets = write(file, [example(0), example(1)])
    content = file.read_bytes()
    for place in range(offsets[1], offsets[2]):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"record 1 at byte {offsets[1]} .* is damaged: the checksum"):
            TfRecordFile(str(file))


def test_damage_after_opening_is_noticed_at_reading(tmp_path):
    file = tmp_path / "a.tfrecord"
    offsets = write(file, [example(0), example(1)])
    records = TfRecordFile(str(file))
    content = bytearray(file.read_bytes())
    content[offsets[1] + 20] ^= 1
    file.write_bytes(content)
    records.read(0)
    with pytest.raises(DataError, match=r"record 1 .* is damaged: the checksum"):
        records.read(1)


def test_damage_is_found_in_any_of_many_records(tmp_path, monkeypatch):
    """Records are verified in groups: damages the first and last of each group, and of the file."""
    monkeypatch.setattr(tfrecord, "VERIFIED_AT_ONCE_BYTES", 2000)
    file = tmp_path / "a.tfrecord"
    examples = [example(seed, length=8 + 37 * (seed % 5)) for seed in range(30)]
    offsets = write(file, examples)
    content = file.read_bytes()
    assert len(TfRecordFile(str(file))) == 30
    for number in range(30):
        damaged = bytearray(content)
        damaged[offsets[number] + 12] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"record {number} at byte {offsets[number]} of"):
            TfRecordFile(str(file))


def test_fingerprints_are_those_of_content_and_order(tmp_path):
    for folder, seeds in (("one", [0, 1]), ("same", [0, 1]), ("order", [1, 0]), ("content", [0, 2])):
        (tmp_path / folder).mkdir()
        for name, seed in zip("ab", seeds):
            write(tmp_path / folder / f"{name}.tfrecord", [example(seed)])
    found = {path.name: TfRecordFile(str(path)).fingerprint() for path in tmp_path.iterdir()}
    assert found["one"] == found["same"]
    assert len({found["one"], found["order"], found["content"]}) == 3
    kept = tmp_path / "kept"
    for _ in range(2):
        assert TfRecordFile(str(tmp_path / "one"), index_folder=kept).fingerprint() == found["one"]


def test_a_damaged_index_is_made_again(tmp_path):
    file, kept = tmp_path / "a.tfrecord", tmp_path / "kept"
    write(file, [example(0), example(1)])
    TfRecordFile(str(file), index_folder=kept)
    (index,) = kept.iterdir()
    content = index.read_bytes()
    for damaged in (b"", content[:-8], content[:20] + b"?" + content[21:], content + bytes(8)):
        index.write_bytes(damaged)
        assert as_lists(TfRecordFile(str(file), index_folder=kept).read(1)) == example(1)
        assert index.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"segment_ids": None}, r"lacks the feature\(s\) segment_ids; it has input_ids, input_mask"),
        ({"input_mask": [1] * 15}, "'input_ids': 16, 'input_mask': 15"),
        ({"masked_lm_ids": [5] * 4}, "'masked_lm_positions': 3, 'masked_lm_ids': 4"),
        ({"next_sentence_labels": [0, 1]}, "has 2 next_sentence_labels"),
    ],
)
def test_missing_and_ill_sized_features_are_named(tmp_path, change, expected):
    features = {name: values for name, values in {**example(0), **change}.items() if values is not None}
    write(tmp_path / "a.tfrecord", [features])
    with pytest.raises(DataError, match=rf"record 0 at byte 0 of .*a\.tfrecord.*{expected}"):
        TfRecordFile(str(tmp_path / "a.tfrecord")).read(0)


def test_a_record_of_something_else_is_an_error(tmp_path):
    for data in (b"plain text, no message", b"", message(example(0))[:-5]):
        (tmp_path / "a.tfrecord").write_bytes(record(data))
        with pytest.raises(DataError, match=r"record 0 at byte 0 of .*a\.tfrecord'"):
            TfRecordFile(str(tmp_path / "a.tfrecord")).read(0)


def test_damaged_messages_never_fail_otherwise():
    content = message({**example(0), "masked_lm_ids": EXTREME})
    rng = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = int(rng.integers(0, 256))
        with contextlib.suppress(MessageError):
            int64_features(bytes(damaged[: int(rng.integers(1, len(content) + 1))]))


@pytest.mark.parametrize("values", [b"\xff" * 10 + b"\x01", b"\x05" + b"\x80" * 10 + b"\x00"])
def test_numbers_beyond_64_bits_are_refused(values):
    for content in (field(1, values), varint(1 << 3) + values[-11:]):
        features = field(1, field(1, field(1, b"input_ids") + field(2, field(3, content))))
        with pytest.raises(MessageError, match="more than 64 bits"):
            int64_features(features)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no TFRecord file: looked for .*\*\.tfrecord"):
        TfRecordFile(str(tmp_path))
    with pytest.raises(DataError, match=r"no TFRecord file: looked for .*missing"):
        TfRecordFile(str(tmp_path / "missing.tfrecord"))
    (tmp_path / "a.tfrecord").write_bytes(b"")
    with pytest.raises(DataError, match=r"no record in .* 1 file\(s\) are empty"):
        TfRecordFile(str(tmp_path))
    (tmp_path / "a.tfrecord").write_bytes(b"This is text, and much longer than a header.")
    with pytest.raises(DataError, match="Is it an uncompressed TFRecord file"):
        TfRecordFile(str(tmp_path))


@needs_samples
def test_graphcores_sample_is_read_as_the_published_index_says():
    records = TfRecordFile(str(SAMPLES / "sample_text.tfrecord"))
    index = [line.split() for line in (SAMPLES / "sample_text.index").read_text().splitlines()]
    assert len(records) == len(index) == 45
    offsets = records.offsets[0].tolist()
    assert offsets == [int(offset) for offset, _ in index]
    for i in range(len(records)):
        features = records.read(i)
        ids, mask = features["input_ids"], features["input_mask"]
        real = int(mask.sum())
        assert ids.shape == mask.shape == features["segment_ids"].shape == (128,)
        assert features["masked_lm_positions"].shape == features["masked_lm_ids"].shape == (20,)
        assert ids[0] == 101 and ids[real - 1] == 102 and not ids[real:].any()  # [CLS] ... [SEP] [PAD] ...
        used = features["masked_lm_ids"] > 0
        assert used.any() and (features["masked_lm_positions"][used] < real).all()
        # Masked by 80/10/10: most of the predicted places hold [MASK], and no [MASK] is anywhere else.
        assert set(np.flatnonzero(ids == 103)) <= set(features["masked_lm_positions"][used])


@needs_samples
def test_graphcores_packed_sample_is_refused_as_unpacked_examples():
    records = TfRecordFile(str(SAMPLES / "packing" / "sample_text_packed.tfrecord"))
    with pytest.raises(DataError, match=r"is packed.*--max-sequences-per-pack 3 --mask-tokens 20"):
        records.read(0)


def test_a_file_that_is_cut_or_overwritten_in_use_is_an_error(tmp_path):
    path = tmp_path / "examples.tfrecord"
    content = b"".join(record(message(example(seed))) for seed in range(4))
    path.write_bytes(content)
    records = TfRecordFile(str(path))
    expected = [records.read(number)["input_ids"].tolist() for number in range(4)]
    huge = content[:-1000] + b"\xff" * 1000
    for damaged in (b"", content[:-1], content[:100], bytes(len(content)), huge):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged|cut"):
            for number in range(4):
                records.read(number)
    path.write_bytes(content)
    assert [records.read(number)["input_ids"].tolist() for number in range(4)] == expected
