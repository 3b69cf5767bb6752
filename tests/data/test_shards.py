"""A shard is read exactly as it was written, or refused as a whole."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import List

import numpy as np
import pytest

from data import shards
from data.files import DataError
from data.shards import (
    MANIFEST,
    RECORD,
    ShardedExamples,
    load_manifest,
    open_shards,
    read_header,
    shard_name,
    verify_shard,
    write_manifest,
    write_shard,
)


def write_folder(folder: Path, sizes: List[int], token_type: str = "<u2") -> None:
    """Shards whose example n has n % 5 + 1 tokens n in segment A and one token n + 1 in B."""
    headers, n = [], 0
    for number, size in enumerate(sizes):
        records, tokens = np.zeros(size, dtype=RECORD), []
        for row in range(size):
            records[row] = (len(tokens), n % 5 + 1, 1, n % 2)
            tokens += [n] * (n % 5 + 1) + [n + 1]
            n += 1
        counts = {"documents": 1, "sentences": 2, "tokens": len(tokens)}
        headers.append(
            write_shard(folder / shard_name("train", number), records, np.array(tokens, token_type), counts)
        )
    write_manifest(folder, {}, {"train": headers})


@pytest.mark.parametrize("token_type", ["<u2", "<u4"])
def test_examples_come_back(tmp_path: Path, token_type: str) -> None:
    write_folder(tmp_path, [3, 0, 70, 1], token_type)
    examples = open_shards(tmp_path, "train")
    assert len(examples) == 74
    for examples_again in (examples, pickle.loads(pickle.dumps(examples))):
        order = np.random.default_rng(0).permutation(74)
        for n, (tokens_a, tokens_b, is_random_next) in zip(order.tolist(), examples_again.read(order)):
            assert tokens_a.tolist() == [n] * (n % 5 + 1)
            assert tokens_b.tolist() == [n + 1]
            assert is_random_next == n % 2


def test_token_counts(tmp_path: Path) -> None:
    write_folder(tmp_path, [2, 3])
    # Example n: n % 5 + 1 times n, once n + 1.
    assert open_shards(tmp_path, "train").token_counts(7).tolist() == [1, 3, 4, 5, 6, 1, 0]


def test_the_largest_ids_survive(tmp_path: Path) -> None:
    records = np.array([(0, 1, 1, 1)], dtype=RECORD)
    for token_type, largest in (("<u2", 65535), ("<u4", 70000)):
        path = tmp_path / f"{largest}.shard"
        write_shard(path, records, np.array([largest, 0], token_type), {})
        tokens_a, tokens_b, _ = ShardedExamples([path]).read(np.array([0]))[0]
        assert tokens_a.tolist() == [largest] and tokens_b.tolist() == [0]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "empty":
        content = bytearray()
    elif how == "truncated":
        content = content[:-1]
    elif how == "grown":
        content += b"\0"
    elif how == "flipped":
        content[-1] ^= 1
    elif how == "no magic":
        content[0] ^= 1
    elif how == "header":
        content[24] = ord("?")
    elif how == "huge header":
        content[8:16] = b"\xff" * 8
    elif how == "missing":
        path.unlink()
        return
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["empty", "truncated", "grown", "flipped", "no magic", "header", "huge header", "missing"]
)
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, how: str) -> None:
    write_folder(tmp_path, [5, 5])
    path = tmp_path / shard_name("train", 1)
    damage(path, how)
    with pytest.raises(DataError, match=f"{path} is damaged.*Delete the folder {tmp_path}"):
        open_shards(tmp_path, "train")


def test_large_data_is_verified_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each opening verifies another part, so a flipped byte is found later; sizes and headers at once."""
    write_folder(tmp_path, [5, 5, 5])
    path = tmp_path / shard_name("train", 1)
    content = path.read_bytes()
    largest = max(read_header(file)[0]["body_bytes"] for file in tmp_path.glob("*.shard"))
    monkeypatch.setattr(shards, "VERIFIED_AT_OPENING_BYTES", largest)
    damage(path, "flipped")
    outcomes = set()
    for _ in range(100):
        try:
            outcomes.add(len(open_shards(tmp_path, "train")))
        except DataError as error:
            assert f"{path} is damaged" in str(error)
            outcomes.add(0)
    assert outcomes == {0, 15}
    for how in ("truncated", "header", "missing"):
        path.write_bytes(content)
        damage(path, how)
        for _ in range(10):
            with pytest.raises(DataError, match=f"{path} is damaged"):
                open_shards(tmp_path, "train")


def test_opening_draws_no_random_number_of_the_run(tmp_path: Path) -> None:
    write_folder(tmp_path, [5, 5, 5])
    before = random.getstate()
    open_shards(tmp_path, "train")
    assert random.getstate() == before


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    write_folder(tmp_path, [3])
    path = tmp_path / shard_name("train", 0)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(DataError):
            verify_shard(path)


def test_a_shard_that_shrinks_later_is_refused_in_workers(tmp_path: Path) -> None:
    write_folder(tmp_path, [5])
    content = pickle.dumps(open_shards(tmp_path, "train"))
    damage(tmp_path / shard_name("train", 0), "truncated")
    with pytest.raises(DataError, match="bytes instead of"):
        pickle.loads(content)


def test_shards_of_another_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_folder(tmp_path / "a", [5])
    write_folder(tmp_path / "b", [6])
    name = shard_name("train", 0)
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(DataError, match="manifest"):
        open_shards(tmp_path / "a", "train")


def test_without_a_manifest_nothing_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, [5])
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(DataError, match="no finished shards"):
        open_shards(tmp_path, "train")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"splits": 3}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    write_folder(tmp_path, [5])
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=MANIFEST):
        open_shards(tmp_path, "train")


def test_nothing_temporary_is_left(tmp_path: Path) -> None:
    write_folder(tmp_path, [2, 2])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [MANIFEST, shard_name("train", 0), shard_name("train", 1)]
    )


def reseal(path: Path, change: dict) -> None:
    """Changes a shard's header, with checksums that are right."""
    header, start = read_header(path)
    body = path.read_bytes()[start:]
    text = json.dumps({**header, **change}, sort_keys=True).encode()
    text += b" " * (-(24 + len(text)) % 64)
    path.write_bytes(struct.pack("<8sQQ", b"PAIRSHRD", len(text), zlib.crc32(text)) + text + body)


@pytest.mark.parametrize(
    "change",
    [
        *({"examples": value} for value in (-1, 60, 10**9, "5", None, True)),
        *({"body_bytes": value} for value in (-1, 10**30, 1.5)),
        *({"token_type": value} for value in ("O", "<f4", "|V0", 3, None)),
        *({"format": value} for value in (1, 3, "2")),
        {"crc32": "x"},
    ],
    ids=str,
)
def test_a_header_that_is_consistent_but_wrong_is_refused(tmp_path: Path, change: dict) -> None:
    write_folder(tmp_path, [5])
    path = tmp_path / shard_name("train", 0)
    reseal(path, change)
    with pytest.raises(DataError, match="is damaged"):
        ShardedExamples([path]).token_counts(70000)


def test_a_shard_that_is_cut_or_overwritten_in_use_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, [5, 40])
    path, other = (tmp_path / shard_name("train", number) for number in (1, 0))
    content = path.read_bytes()
    examples = open_shards(tmp_path, "train")
    _, body_start = read_header(path)
    every = np.arange(5, 45)
    for place in range(body_start, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match=str(path)):
            examples.read(every)
    for damaged in (content[:-1], content[:body_start], b"", bytes(len(content)), other.read_bytes() * 9):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=str(path)):
            examples.read(every)
        assert len(examples.read(np.arange(5))) == 5  # of the other shard
    path.write_bytes(content)
    assert len(examples.read(every)) == 40


def test_examples_of_another_shard_do_not_match(tmp_path: Path) -> None:
    """Even if header and offsets are the same: the checksums start with the shard's description."""
    records, tokens = np.array([(0, 1, 1, 1)], dtype=RECORD), np.array([3, 4], "<u2")
    for chunk in ("a", "b"):
        write_shard(tmp_path / chunk, records, tokens, {"chunk": chunk})
    examples = ShardedExamples([tmp_path / "a"])
    (tmp_path / "a").write_bytes((tmp_path / "b").read_bytes())
    with pytest.raises(DataError, match="doesn't match its checksum"):
        examples.read(np.array([0]))


def test_a_token_id_outside_of_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, [5])
    with pytest.raises(DataError, match="token id 5 is outside of the vocabulary of 5"):
        open_shards(tmp_path, "train").token_counts(5)


def test_a_manifest_has_a_checksum(tmp_path: Path) -> None:
    write_folder(tmp_path, [5])
    path = tmp_path / MANIFEST
    text = path.read_text()
    for before, after in (('"documents": 1', '"documents": 2'), ('"examples": 5', '"examples": 4')):
        assert before in text
        path.write_text(text.replace(before, after))
        with pytest.raises(DataError, match=f"{MANIFEST} is damaged.*its own checksum"):
            load_manifest(tmp_path)


@pytest.mark.parametrize(
    "splits", [{"train": 3}, {"train": [3]}, {"train": [{}]}, {"train": [{"examples": -1}]}]
)
def test_a_manifest_that_is_consistent_but_wrong_is_refused(tmp_path: Path, splits: dict) -> None:
    write_manifest(tmp_path, {}, splits)
    with pytest.raises(DataError, match="lacks a count"):
        load_manifest(tmp_path)
    sealed = {"splits": {}}
    sealed["sha256"] = hashlib.sha256(json.dumps(sealed).encode()).hexdigest()
    (tmp_path / MANIFEST).write_text(json.dumps(sealed))
    with pytest.raises(DataError, match="format isn't 2"):
        load_manifest(tmp_path)


def test_more_shards_than_files_that_may_be_open(tmp_path: Path) -> None:
    write_folder(tmp_path, [1] * 300)
    examples = open_shards(tmp_path, "train")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        assert [a.tolist()[0] for a, _, _ in examples.read(np.arange(300))] == list(range(300))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 128
