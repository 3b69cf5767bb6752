"""Cached windows equal fresh ones; damaged or outdated caches are rebuilt; batches of windows."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data.squad.windows
from data import EvaluationDataset
from data.files import DataError
from data.squad import QuestionSet, SquadDataset, WindowOptions, make_windows, prepare_features
from data.tokenizer import Tokenizer

from .test_answers import question_set, tokenizer

__all__ = ["tokenizer"]
OPTIONS = WindowOptions(20, 5, 6)


def arrays_of(features: data.squad.windows.Features) -> dict[str, np.ndarray]:
    return {name: getattr(features, name) for name in data.squad.windows.ARRAYS}


def test_features_are_the_windows(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.squad.windows, "WINDOWS_IN_A_CHUNK", 7)  # several chunks and a rest
    questions = question_set(0)
    windows = list(make_windows(questions, tokenizer, OPTIONS))
    assert len(windows) % 7
    dataset = SquadDataset(
        prepare_features(questions, tokenizer, OPTIONS, cache_folder=tmp_path), seed=0, shuffle=False
    )
    fields = ("input_ids", "attention_mask", "token_type_ids", "start_position", "end_position")
    batch = dataset.__getitems__(range(len(windows))).batch
    for tensor, name in zip(batch, fields, strict=True):
        assert tensor.numpy().dtype == np.int32
        assert tensor.tolist() == np.stack([getattr(window, name) for window in windows]).tolist()
    features = prepare_features(questions, tokenizer, OPTIONS, cache_folder=tmp_path)
    for name in ("question", "offsets", "is_max_context"):
        assert np.array_equal(
            getattr(features, name), np.stack([getattr(window, name) for window in windows])
        )


def test_the_second_time_they_come_from_the_cache(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = question_set(1)
    first = prepare_features(questions, tokenizer, OPTIONS, cache_folder=tmp_path)
    monkeypatch.setattr(data.squad.windows, "make_windows", lambda *_: pytest.fail("made again"))
    second = prepare_features(replace(questions, name="moved"), tokenizer, OPTIONS, cache_folder=tmp_path)
    assert second.identity == first.identity
    for name, array in arrays_of(second).items():
        assert np.array_equal(array, getattr(first, name))
        assert isinstance(array.base, np.memmap) or isinstance(array.base.base, np.memmap), name
    assert len(pickle.loads(pickle.dumps(SquadDataset(second, seed=0, shuffle=True)))) == len(first)


@pytest.mark.parametrize("name", ["input_ids.npy", "manifest.json", "offsets.npy"])
def test_a_damaged_file_is_made_again(
    tmp_path: Path, tokenizer: Tokenizer, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = question_set(2)
    first = prepare_features(questions, tokenizer, OPTIONS, cache_folder=tmp_path)
    expected = {key: array.copy() for key, array in arrays_of(first).items()}
    file = tmp_path / "squad" / first.identity / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    again = prepare_features(questions, tokenizer, OPTIONS, cache_folder=tmp_path)
    assert "made again" in capsys.readouterr().err
    assert all(np.array_equal(array, expected[key]) for key, array in arrays_of(again).items())


def test_what_decides_the_windows_decides_the_identity(tmp_path: Path, tokenizer: Tokenizer) -> None:
    questions = question_set(3)

    def identity(
        data: QuestionSet = questions, vocabulary: Tokenizer = tokenizer, options: WindowOptions = OPTIONS
    ) -> str:
        return prepare_features(data, vocabulary, options, cache_folder=tmp_path).identity

    first = questions.questions[0]
    changed = replace(questions, questions=(replace(first, question="the bridge"), *questions.questions[1:]))
    answered = replace(
        questions,
        questions=(replace(first, answers=questions.questions[1].answers), *questions.questions[1:]),
    )
    found = {
        identity(),
        identity(changed),
        identity(answered),
        identity(vocabulary=Tokenizer(tokenizer.vocabulary[:-1])),
        *(identity(options=WindowOptions(*lengths)) for lengths in ((21, 5, 6), (20, 4, 6), (20, 5, 5))),
    }
    assert len(found) == 7


def test_the_last_batch_is_padded_with_rows_that_have_no_position(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    features = prepare_features(question_set(4), tokenizer, OPTIONS, cache_folder=tmp_path)
    dataset = SquadDataset(features, seed=0, shuffle=False)
    rows = len(features)
    padded = EvaluationDataset(dataset, rows - 1)
    assert len(padded) == 2 * rows - 2
    ids, mask, types, starts, ends = padded.__getitems__(range(rows - 2, 2 * rows - 2)).batch
    assert starts[:2].min() >= 0 and starts[2:].unique().tolist() == ends[2:].unique().tolist() == [-100]
    assert mask[2:].sum(dim=1).unique().tolist() == [1] and mask[2:, 0].all()
    assert not types[2:].any() and ids[2:].unique().tolist() == [tokenizer.pad_id]
    assert [field[:2].tolist() for field in (ids, mask, types, starts, ends)] == [
        field.tolist() for field in dataset.__getitems__([rows - 2, rows - 1]).batch
    ]


def test_each_pass_sees_every_window_once_in_an_order_of_its_own(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    features = prepare_features(question_set(5), tokenizer, OPTIONS, cache_folder=tmp_path)
    dataset = SquadDataset(features, seed=3, shuffle=True)
    count = len(features)

    def rows(first: int) -> list[tuple[list[int], ...]]:
        batch = dataset.__getitems__(range(first, first + count)).batch
        return [tuple(field[row].tolist() for field in batch[:1]) for row in range(count)]

    one, two = rows(0), rows(count)
    assert one != two and sorted(one) == sorted(two)
    assert one == rows(0)


def test_an_unusable_cache_folder_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="cache_folder"):
        prepare_features(question_set(0), tokenizer, OPTIONS, cache_folder=tmp_path / "cache")


def sealed(folder: Path, name: str, array: np.ndarray) -> None:
    """Writes another array into a cache, with checksums that are right."""
    np.save(folder / f"{name}.npy", array)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["crc32"][name] = zlib.crc32((folder / f"{name}.npy").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest))


WRONG = {
    "input_ids": [lambda a: a * 0 + 60000, lambda a: a[:, :-1], lambda a: a[:-1], lambda a: a * 1.0],
    "tokens": [lambda a: a * 0, lambda a: a + 100, lambda a: a[:, None]],
    "context_start": [lambda a: a - 100],
    "question": [lambda a: a + 1, lambda a: a[::-1], lambda a: a * 0, lambda a: a[:0]],
    "start_position": [lambda a: a + 100, lambda a: a * 0 + 19],
    "end_position": [lambda a: a - 100],
    "offsets": [lambda a: a[:, :, :1], lambda a: a - 5, lambda a: np.asfortranarray(a)],
    "is_max_context": [lambda a: a.astype(int), lambda a: a.T],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, changes in WRONG.items() for number in range(len(changes))]
)
def test_arrays_that_are_consistent_but_wrong_are_made_again(
    tmp_path: Path, tokenizer: Tokenizer, name: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = question_set(2)
    first = prepare_features(questions, tokenizer, OPTIONS, cache_folder=tmp_path)
    expected = {key: array.copy() for key, array in arrays_of(first).items()}
    sealed(tmp_path / "squad" / first.identity, name, WRONG[name][number](expected[name]))
    again = prepare_features(questions, tokenizer, OPTIONS, cache_folder=tmp_path)
    assert "made again" in capsys.readouterr().err
    assert all(np.array_equal(array, expected[key]) for key, array in arrays_of(again).items())


def test_arrays_that_are_cut_or_overwritten_in_use_stay_as_they_were(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    features = prepare_features(question_set(2), tokenizer, OPTIONS, cache_folder=tmp_path)
    expected = {key: array.copy() for key, array in arrays_of(features).items()}
    for number, file in enumerate(sorted((tmp_path / "squad" / features.identity).glob("*.npy"))):
        if number % 2:
            os.truncate(file, 10)
        else:
            with file.open("r+b") as stream:
                stream.write(bytes(file.stat().st_size))
    assert all(np.array_equal(array, expected[key]) for key, array in arrays_of(features).items())
