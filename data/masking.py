"""Masked language modelling: which tokens to predict, and their replacements in the input.

Devlin et al. 2019, section 3.1: of the selected tokens, 80% become [MASK], 10% a random token and 10% are
unchanged. Random numbers are keyed (data/randomness.py), so an example's mask depends only on its key.

Legend: B examples, S tokens per sequence, M maximum number of predictions (mask_tokens).
"""

from __future__ import annotations

import functools
from typing import Iterable, List, Tuple

import numpy as np

from .randomness import below, counters, mix, share

IGNORED_LABEL = -100
# Random numbers below these mask a token, and replace it by the mask or by another token.
_MASKED, _REPLACED = share(0.8), share(0.8 + 0.1)
_HIGHEST = np.uint64(np.iinfo(np.uint64).max)


@functools.lru_cache(maxsize=8)
def _places(batch_size: int, sequence_length: int) -> np.ndarray:
    """uint64 [B,S]: 0 to S - 1 in each row. Not to be changed."""
    return np.tile(np.arange(sequence_length, dtype=np.uint64), (batch_size, 1))


@functools.lru_cache(maxsize=64)
def _steps(batch_size: int, sequence_length: int) -> np.ndarray:
    """int64 [B,1]: where each row of a batch begins. Not to be changed."""
    return np.arange(0, batch_size * sequence_length, sequence_length)[:, None]


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
        self._wanted_of = np.zeros(0, dtype=np.int64)
        # uint64 [M + 1, M]: by number of predictions, the unused slots, with a number beyond all tokens.
        is_unwanted = np.arange(mask_tokens) >= np.arange(mask_tokens + 1)[:, None]
        self._unwanted = np.where(is_unwanted, np.uint64(1 << 62), np.uint64(0))
        self._is_special = ~self._is_maskable
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
        wanted = self._wanted(sequence_length).take(num_tokens)

        # The draws of `keys` rank the tokens, those of `mix(keys)` replace them.
        ranks, draws = batch_size * sequence_length, batch_size * slots
        words = np.empty(ranks + 2 * draws, dtype=np.uint64)
        np.add(
            keys[:, None], counters(sequence_length), out=words[:ranks].reshape(batch_size, sequence_length)
        )
        more = words[ranks:].reshape(2, batch_size, slots)
        np.add(mix(keys)[:, None], counters(2 * slots).reshape(2, 1, slots), out=more)
        words = mix(words)
        choose = self._choose_words if self._whole_word else self._choose_tokens
        chosen = choose(input_ids, words[:ranks].reshape(batch_size, sequence_length), wanted)
        chosen.sort(axis=1)

        used = chosen < sequence_length
        positions = np.where(used, chosen, 0)
        cells = positions + _steps(batch_size, sequence_length)
        labels = input_ids.take(cells)
        masked_ids = np.array(input_ids, order="C")
        written = self._replaced(labels, *words[ranks:].reshape(2, batch_size, slots))
        masked_ids.ravel()[cells[used]] = written[used]
        labels[~used] = IGNORED_LABEL
        return masked_ids, positions.astype(np.int32), labels.astype(np.int32, copy=False)

    def predictions(self, num_tokens: np.ndarray) -> np.ndarray:
        """int64: the most predictions of an example with so many tokens."""
        return self._wanted(int(num_tokens.max(initial=0))).take(num_tokens)

    def _wanted(self, sequence_length: int) -> np.ndarray:
        """int64 [S + 1]: the number of predictions of an example of so many tokens."""
        if len(self._wanted_of) <= sequence_length:
            tokens = np.arange(sequence_length + 1)
            share = np.rint(self._probability * tokens).astype(np.int64)
            self._wanted_of = share.clip(1, self._mask_tokens)
        return self._wanted_of

    def _replaced(self, originals: np.ndarray, decisions: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The input ids at the predicted positions, int32 [B,M]; random numbers uint64 [B,M] twice."""
        seen = self._replacement_ids.take(below(draws, len(self._replacement_ids)))
        np.copyto(seen, originals, where=decisions >= _REPLACED)
        seen[decisions < _MASKED] = self._mask_id
        return seen

    def _choose_tokens(self, input_ids: np.ndarray, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Positions int64 [B,M] of the `wanted` maskable tokens with the lowest scores, S or more if unused.

        The lowest bits of `scores`, which is overwritten, become the position: one sort orders both.
        """
        sequence_length, slots = input_ids.shape[1], self._mask_tokens
        of_position = np.uint64((1 << sequence_length.bit_length()) - 1)
        scores &= ~of_position
        scores |= _places(*scores.shape)
        scores[self._is_special.take(input_ids)] = _HIGHEST
        scores.sort(axis=1)  # faster than a partition up to some 512 tokens
        chosen = scores[:, :slots] & of_position
        chosen |= self._unwanted.take(wanted, axis=0)
        return chosen.view(np.int64)

    def _choose_words(self, input_ids: np.ndarray, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Positions int64 [B,M] of whole words in the order of their first token's score, S if unused."""
        batch_size, sequence_length = input_ids.shape
        is_maskable = self._is_maskable[input_ids]
        wanted = np.minimum(wanted, is_maskable.sum(axis=1))
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
