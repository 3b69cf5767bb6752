"""Masked language modelling: which tokens to predict, and their replacements in the input.

Devlin et al. 2019, section 3.1: of the selected tokens, 80% become [MASK], 10% a random token and 10% are
unchanged. Random numbers are keyed (data/randomness.py), so an example's mask depends only on its key.

Legend: B examples, S tokens per sequence, M maximum number of predictions (mask_tokens).
"""

from __future__ import annotations

from typing import Iterable, List, Tuple

import numpy as np

from .randomness import below, draws, mix, unit_interval

IGNORED_LABEL = -100
_MASKED_SHARE, _RANDOM_SHARE = 0.8, 0.1


class Masker:
    """Masks batches of token ids. Special ids (including [PAD]) are never masked and never drawn.

    is_continuation: bool [vocabulary], the pieces that continue a word; whole_word masks all pieces of a word
    or none, and skips words with more pieces than predictions left. If no word fits, single pieces are used.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        special_ids: Iterable[int],
        is_continuation: np.ndarray,
        mask_tokens: int,
        probability: float = 0.15,
        whole_word: bool = False,
    ) -> None:
        self._mask_id = mask_id
        self._mask_tokens = mask_tokens
        self._probability = probability
        self._whole_word = whole_word
        self._is_continuation = np.asarray(is_continuation, dtype=bool)
        self._is_maskable = np.ones(len(self._is_continuation), dtype=bool)
        self._is_maskable[list(special_ids)] = False
        self._replacement_ids = np.flatnonzero(self._is_maskable).astype(np.int32)

    def __call__(
        self, input_ids: np.ndarray, num_tokens: np.ndarray, keys: np.ndarray
    ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """input_ids int32 [B,S], num_tokens int [B] (without padding), keys uint64 [B]
        -> masked input_ids [B,S], positions [B,M] (ascending, then 0), labels [B,M] (then -100), all int32.

        As in BERT, the number of predictions is the probability times all tokens of the example, including
        [CLS] and [SEP], rounded, at least 1 and at most M. An example without maskable tokens has none.
        """
        batch_size, sequence_length = input_ids.shape
        slots = self._mask_tokens
        is_maskable = self._is_maskable[input_ids]
        wanted = np.clip(np.rint(self._probability * num_tokens), 1, slots).astype(np.int64)
        wanted = np.minimum(wanted, is_maskable.sum(axis=1))

        scores = draws(keys, sequence_length)
        if self._whole_word:
            chosen = self._choose_words(input_ids, is_maskable, scores, wanted)
        else:
            scores[~is_maskable] = np.iinfo(np.uint64).max
            ranked = np.argsort(scores, axis=1)[:, :slots]
            chosen = np.where(np.arange(slots) < wanted[:, None], ranked, sequence_length)
        chosen.sort(axis=1)

        used = chosen < sequence_length
        positions = np.where(used, chosen, 0)
        originals = np.take_along_axis(input_ids, positions, axis=1)
        rows = np.broadcast_to(np.arange(batch_size)[:, None], used.shape)[used]
        masked_ids = input_ids.copy()
        masked_ids[rows, positions[used]] = self._replace(originals, mix(keys))[used]
        labels = np.where(used, originals, IGNORED_LABEL)
        return masked_ids, positions.astype(np.int32), labels.astype(np.int32)

    def _replace(self, originals: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The input ids at the predicted positions, int32 [B,M]."""
        words = draws(keys, 2 * self._mask_tokens)
        decisions = unit_interval(words[:, : self._mask_tokens])
        random_ids = self._replacement_ids[below(words[:, self._mask_tokens :], len(self._replacement_ids))]
        seen = np.where(decisions < _MASKED_SHARE + _RANDOM_SHARE, random_ids, originals)
        return np.where(decisions < _MASKED_SHARE, np.int32(self._mask_id), seen)

    def _choose_words(
        self, input_ids: np.ndarray, is_maskable: np.ndarray, scores: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        """Positions int64 [B,M] of whole words in the order of their first token's score, S if unused."""
        batch_size, sequence_length = input_ids.shape
        chosen = np.full((batch_size, self._mask_tokens), sequence_length, dtype=np.int64)
        after_special = np.ones_like(is_maskable)
        after_special[:, 1:] = ~is_maskable[:, :-1]
        # A truncated segment may begin within a word: its remaining pieces count as the word.
        is_start = is_maskable & (~self._is_continuation[input_ids] | after_special)
        is_border = np.concatenate([is_start | ~is_maskable, np.ones((batch_size, 1), dtype=bool)], axis=1)
        for row in range(batch_size):
            starts = np.flatnonzero(is_start[row])
            borders = np.flatnonzero(is_border[row])
            ends = borders[np.searchsorted(borders, starts, side="right")]
            order = np.argsort(scores[row, starts])
            positions: List[int] = []
            room = int(wanted[row])
            for start, end in zip(starts[order].tolist(), ends[order].tolist()):
                if end - start <= room:
                    positions.extend(range(start, end))
                    room -= end - start
                    if room == 0:
                        break
            if not positions:
                maskable = np.flatnonzero(is_maskable[row])
                positions = maskable[np.argsort(scores[row, maskable])][:room].tolist()
            chosen[row, : len(positions)] = positions
        return chosen
