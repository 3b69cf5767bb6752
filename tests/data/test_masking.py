"""Masks: their number, positions and replacements; they depend on the key alone."""

from __future__ import annotations

import hashlib
from typing import Tuple

import numpy as np
import pytest

from data.masking import IGNORED_LABEL, Masker
from data.randomness import derive_key

VOCABULARY, PAD, CLS, SEP, MASK = 1000, 0, 2, 3, 4
SPECIALS = (PAD, 1, CLS, SEP, MASK)
CONTINUATIONS = np.arange(VOCABULARY) >= 700


def make_masker(mask_tokens: int = 20, **options: object) -> Masker:
    return Masker(
        mask_id=MASK,
        special_ids=SPECIALS,
        is_continuation=CONTINUATIONS,
        mask_tokens=mask_tokens,
        **options,  # type: ignore[arg-type]
    )


def make_batch(rows: int, length: int = 128, seed: int = 0) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCABULARY, (rows, length), dtype=np.int32)
    num_tokens = rng.integers(5, length + 1, rows)
    ids[:, 0] = CLS
    ids[np.arange(rows), num_tokens // 2] = SEP
    ids[np.arange(rows), num_tokens - 1] = SEP
    ids[np.arange(length) >= num_tokens[:, None]] = PAD
    return ids, num_tokens, derive_key(1, np.arange(rows))


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("mask_tokens", [1, 5, 20, 128])
def test_what_holds_of_every_mask(whole_word: bool, mask_tokens: int) -> None:
    ids, num_tokens, keys = make_batch(200)
    before = ids.copy()
    masked, positions, labels = make_masker(mask_tokens, whole_word=whole_word)(ids, num_tokens, keys)
    assert (ids == before).all()
    assert masked.dtype == positions.dtype == labels.dtype == np.int32
    assert positions.shape == labels.shape == (200, mask_tokens)
    for row in range(len(ids)):
        used = labels[row] != IGNORED_LABEL
        count = int(used.sum())
        wanted = min(
            mask_tokens, max(1, round(0.15 * num_tokens[row])), int((~np.isin(ids[row], SPECIALS)).sum())
        )
        assert 1 <= count <= wanted
        if not whole_word:
            assert count == wanted
        assert used[:count].all() and (positions[row, count:] == 0).all()
        places = positions[row, :count]
        assert (np.diff(places) > 0).all()
        assert (labels[row, :count] == ids[row, places]).all()
        assert not np.isin(labels[row, :count], SPECIALS).any()
        untouched = np.setdiff1d(np.arange(ids.shape[1]), places)
        assert (masked[row, untouched] == ids[row, untouched]).all()


def test_eighty_ten_ten() -> None:
    ids, num_tokens, keys = make_batch(3000)
    masked, positions, labels = make_masker()(ids, num_tokens, keys)
    used = labels != IGNORED_LABEL
    seen = np.take_along_axis(masked, positions, axis=1)[used]
    n = used.sum()

    def assert_share(observed: np.ndarray, expected: float) -> None:
        assert abs(observed.mean() - expected) < 5 * (expected * (1 - expected) / n) ** 0.5

    assert_share(seen == MASK, 0.8)
    # A random token is the original one time in the vocabulary's size.
    assert_share(seen == labels[used], 0.1 + 0.1 / (VOCABULARY - len(SPECIALS)))
    drawn = seen[(seen != MASK) & (seen != labels[used])]
    assert not np.isin(drawn, SPECIALS).any()
    assert len(np.unique(drawn)) > 0.9 * (VOCABULARY - len(SPECIALS))


def test_every_position_is_as_likely() -> None:
    rows, length = 20_000, 32
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (rows, length), dtype=np.int32)
    _, positions, labels = make_masker(5)(ids, np.full(rows, length), derive_key(9, np.arange(rows)))
    assert (labels != IGNORED_LABEL).all()
    counts = np.bincount(positions.ravel(), minlength=length)
    expected = rows * 5 / length
    # Draws without replacement vary less than the chi-squared law says.
    assert ((counts - expected) ** 2 / expected).sum() < length + 5 * (2 * length) ** 0.5


def test_what_is_seen_is_independent_of_where() -> None:
    """Whether the first token is predicted is independent of the replacement of any predicted token."""
    rows, length, slots = 20_000, 32, 5
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (rows, length), dtype=np.int32)
    masked, positions, _ = make_masker(slots)(ids, np.full(rows, length), derive_key(8, np.arange(rows)))
    seen = np.take_along_axis(masked, positions, axis=1)
    for place in range(4):
        shares = (seen[(positions == place).any(axis=1)] == MASK).mean(axis=0)
        assert (abs(shares - 0.8) < 5 * (0.16 / (rows * slots / length)) ** 0.5).all()


def test_a_mask_depends_on_its_key_alone() -> None:
    ids, num_tokens, keys = make_batch(50)
    for whole_word in (False, True):
        masker = make_masker(whole_word=whole_word)
        together = masker(ids, num_tokens, keys)
        for row in (0, 17, 49):
            alone = masker(ids[row : row + 1], num_tokens[row : row + 1], keys[row : row + 1])
            for ours, theirs in zip(alone, together):
                assert (ours[0] == theirs[row]).all()
        other = masker(ids, num_tokens, derive_key(2, np.arange(50)))
        assert (other[1] != together[1]).any(axis=1).sum() > 45


def test_whole_words_are_masked_whole() -> None:
    ids, num_tokens, keys = make_batch(300)
    _, positions, labels = make_masker(20, whole_word=True)(ids, num_tokens, keys)
    checked = 0
    for row in range(len(ids)):
        places = set(positions[row][labels[row] != IGNORED_LABEL].tolist())
        words, special = [], True
        for place, token in enumerate(ids[row].tolist()):
            if token in SPECIALS:
                special = True
                continue
            if special or not CONTINUATIONS[token]:
                words.append([place])
            else:
                words[-1].append(place)
            special = False
        if min(map(len, words)) > max(1, round(0.15 * num_tokens[row])):
            continue
        for word in words:
            assert not places & set(word) or places >= set(word)
        checked += 1
    assert checked > 250


def test_words_that_do_not_fit_are_skipped() -> None:
    """One single-piece word among words of four pieces, at most two masks: only that word can be masked."""
    ids = np.array([[CLS, 10, 800, 801, 802, 11, 12, 803, 804, 805, SEP, PAD]], dtype=np.int32)
    for key in range(20):
        _, positions, labels = make_masker(2, whole_word=True)(
            ids, np.array([11]), derive_key(np.array([key]))
        )
        assert positions.tolist() == [[5, 0]] and labels.tolist() == [[11, IGNORED_LABEL]]


def test_a_word_longer_than_the_cap_is_masked_in_part() -> None:
    ids = np.array([[CLS, 10, 800, 801, SEP]], dtype=np.int32)
    _, positions, labels = make_masker(1, whole_word=True)(ids, np.array([5]), derive_key(np.array([3])))
    assert 1 <= positions[0, 0] <= 3 and labels[0, 0] == ids[0, positions[0, 0]]


def test_a_row_without_a_token_to_mask_has_no_prediction() -> None:
    ids = np.array([[CLS, SEP, SEP, PAD]], dtype=np.int32)
    for whole_word in (False, True):
        masked, positions, labels = make_masker(2, whole_word=whole_word)(
            ids, np.array([3]), derive_key(np.array([0]))
        )
        assert (masked == ids).all() and (positions == 0).all() and (labels == IGNORED_LABEL).all()


@pytest.mark.parametrize("whole_word, digest", [(False, "3e6f2aec7e5a1734"), (True, "79c66715a826b52c")])
def test_masks_keep_their_bits_from_version_to_version(whole_word: bool, digest: str) -> None:
    """A run that is resumed by a later version gets the masks that it would have had."""
    num_tokens = np.array([128, 5, 17, 128, 64, 3, 127, 90])
    ids = (np.arange(8 * 128, dtype=np.int32) * 37 % 995 + 5).reshape(8, 128)
    ids[:, 0], ids[np.arange(8), num_tokens - 1] = CLS, SEP
    ids[np.arange(128) >= num_tokens[:, None]] = PAD
    made = make_masker(whole_word=whole_word)(ids, num_tokens, derive_key(1, np.arange(8)))
    assert hashlib.sha256(b"".join(part.tobytes() for part in made)).hexdigest()[:16] == digest
