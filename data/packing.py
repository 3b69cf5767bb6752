"""Packing: which lengths of sequences share a row, decided on their histogram.

A corpus has millions of sequences but only a few hundred lengths, so a packer that works on the number of
sequences of each length takes milliseconds (Krell et al. 2021, arXiv 2107.02027). A row has a length in
tokens, a depth (the most sequences in it) and separators, tokens of padding between two sequences. A packing
minimises the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

# Rows that are alike: their number, and the lengths of the sequences in each.
Rows = Tuple[int, Tuple[int, ...]]

# Room after the longest sequence, as a fraction of a row, below which it gets one more sequence and not two;
# length below which the smallest sequences are placed first. Both were found on Wikipedia's histogram, where
# rows of three are within 0.01% of the linear program's lower bound.
_ROOM_FOR_ONE = 0.086
_SHORT = 0.47
# A sequence is worth its length to this power when `_best_valued` chooses what shares a row: 1 wastes the
# fewest tokens of this row, and leaves long sequences for rows in which nothing fits beside them; first-fit
# decreasing is its limit at infinity. The search starts at the best value for SQuAD's histogram.
_POWER = 3.5
_POWER_STEP = 0.4


@dataclass(frozen=True)
class Packing:
    """The rows of a packing, by kind."""

    kinds: Tuple[Rows, ...]
    row_length: int

    @property
    def rows(self) -> int:
        return sum(number for number, _ in self.kinds)

    @property
    def sequences(self) -> int:
        return sum(number * len(lengths) for number, lengths in self.kinds)

    @property
    def tokens(self) -> int:
        return sum(number * sum(lengths) for number, lengths in self.kinds)

    @property
    def efficiency(self) -> float:
        """The fraction of the rows' tokens that aren't padding; 1 without rows."""
        return self.tokens / (self.rows * self.row_length) if self.rows else 1.0


def pack(
    counts: Sequence[int], row_length: int, *, depth: Optional[int] = None, separator: int = 0
) -> Packing:
    """The best of several packings: first-fit decreasing, and with rows of three or more `_threes` and
    `_best_valued`.

    :param counts: number of sequences of each length, from 0 on; lengths 0 and above row_length must have
        none.
    :param depth: the most sequences in a row; None: no limit.
    """
    histogram = np.asarray(counts, dtype=np.int64)
    assert len(histogram) > row_length and not histogram[0] and not histogram[row_length + 1 :].any()
    # Each sequence brings a separator, and the row has room for one more.
    capacity = row_length + separator
    sizes = np.zeros(capacity + 1, dtype=np.int64)
    sizes[separator : separator + row_length + 1] = histogram[: row_length + 1]
    most = capacity if depth is None else depth
    best = _first_fit_decreasing(sizes, capacity, most)
    if most >= 3:
        best = min(best, _threes(sizes, capacity, most), key=_count)
        best = _searched(sizes, capacity, most, best)
    kinds = tuple((number, tuple(size - separator for size in row)) for number, row in best)
    return Packing(kinds, row_length)


def _count(kinds: List[Rows]) -> int:
    return sum(number for number, _ in kinds)


def _first_fit_decreasing(counts: np.ndarray, capacity: int, depth: int) -> List[Rows]:
    """Each sequence, from long to short, into the first row that has room for it.

    Rows that are alike are one entry of the lists, in the order in which their first one was opened.
    """
    room, places, number = (np.empty(4 * len(counts), dtype=np.int64) for _ in range(3))
    contents: List[Tuple[int, ...]] = []
    for size in np.flatnonzero(counts)[::-1].tolist():
        left, opened = int(counts[size]), len(contents)
        each = np.minimum(room[:opened] // size, places[:opened])
        fitting = np.flatnonzero(each)
        reached = np.cumsum(each[fitting] * number[fitting])
        filled = int(np.searchsorted(reached, left, side="right"))
        whole = fitting[:filled]
        room[whole] -= each[whole] * size
        places[whole] -= each[whole]
        for entry in whole.tolist():
            contents[entry] += (size,) * int(each[entry])
        left -= int(reached[filled - 1]) if filled else 0
        if left and filled < len(fitting):
            # The sequences that are left fill some rows of one entry, which splits it.
            entry = int(fitting[filled])
            full, rest = divmod(left, int(each[entry]))
            parts = [(full, int(each[entry])), (int(rest > 0), rest)]
            parts.append((int(number[entry]) - full - (rest > 0), 0))
            kept = [(many, more) for many, more in parts if many]
            before = int(room[entry]), int(places[entry]), contents[entry]
            tail = slice(entry + 1, opened)
            shift = len(kept) - 1
            if opened + shift + 2 > len(room):
                room, places, number = (np.concatenate([each_, each_]) for each_ in (room, places, number))
            for values in (room, places, number):
                values[entry + 1 + shift : opened + shift] = values[tail].copy()
            contents[entry : entry + 1] = [before[2] + (size,) * more for _, more in kept]
            for offset, (many, more) in enumerate(kept):
                room[entry + offset] = before[0] - more * size
                places[entry + offset], number[entry + offset] = before[1] - more, many
            left = 0
        if left:
            each_new = min(capacity // size, depth)
            full, rest = divmod(left, each_new)
            for many, inside in ((full, each_new), (int(rest > 0), rest)):
                if not many:
                    continue
                opened = len(contents)
                if opened == len(room):
                    room, places, number = (
                        np.concatenate([each_, each_]) for each_ in (room, places, number)
                    )
                room[opened], places[opened], number[opened] = capacity - inside * size, depth - inside, many
                contents.append((size,) * inside)
    return list(zip(number[: len(contents)].tolist(), contents))


def _threes(counts: np.ndarray, capacity: int, depth: int) -> List[Rows]:
    """Rows of three that fill a row exactly, wherever there are any.

    From long to short, the sequences of a size become the longest of their rows. If much room is left, two
    more sequences fill it exactly: all pairs of sizes that do share in it by their numbers, so that the
    histogram keeps its shape; among short sequences, pairs with the smallest one come first, since no later
    row could use it. What is left over is filled with the longest sequences that fit.
    """
    counts = counts.copy()
    rows: List[Rows] = []
    for size in range(capacity, 0, -1):
        while counts[size]:
            left, room = int(counts[size]), capacity - size
            if room >= size:  # leave some of this size to fill up the others' rows
                left = max(1, left // min(depth, capacity // size))
            counts[size] -= left
            if room > _ROOM_FOR_ONE * capacity:
                for number, second in _pairs(counts, size, room, left, smallest=size <= _SHORT * capacity):
                    counts[second] -= number
                    counts[room - second] -= number
                    left -= number
                    rows.append((number, (size, second, room - second)))
            rows.extend(_filled_up(counts, left, room, depth - 1, (size,)))
    return rows


def _pairs(
    counts: np.ndarray, size: int, room: int, wanted: int, *, smallest: bool
) -> Iterator[Tuple[int, int]]:
    """Numbers of pairs, at most `wanted` together, with the larger size of each; a pair fills the room."""
    second = np.arange((room + 1) // 2, min(size, room - 1) + 1)
    if not len(second):
        return
    possible = np.minimum(counts[second], counts[room - second])
    if 2 * second[0] == room:
        possible[0] = counts[second[0]] // 2
    total = int(possible.sum())
    if total > wanted and not smallest:
        possible = np.minimum(possible, np.ceil(possible * (wanted / total)).astype(np.int64))
    if smallest:
        possible = possible[::-1]
    taken = np.minimum(possible, np.maximum(0, wanted - (np.cumsum(possible) - possible)))
    if smallest:
        taken = taken[::-1]
    used = np.flatnonzero(taken)
    yield from zip(taken[used].tolist(), second[used].tolist())


def _filled_up(
    counts: np.ndarray, number: int, room: int, places: int, inside: Tuple[int, ...]
) -> Iterator[Rows]:
    """`number` rows with `inside` already in them, each filled up with the longest sequences that fit."""
    waiting = [(number, room, places, inside)] if number else []
    while waiting:
        number, room, places, inside = waiting.pop()
        available = np.flatnonzero(counts[1 : room + 1])
        if not places or not len(available):
            yield number, inside
            continue
        size = int(available[-1]) + 1
        each = min(room // size, places, int(counts[size]))
        rows = min(number, int(counts[size]) // each)
        counts[size] -= rows * each
        waiting.append((rows, room - each * size, places - each, inside + (size,) * each))
        if rows < number:
            waiting.append((number - rows, room, places, inside))


def _searched(counts: np.ndarray, capacity: int, depth: int, best: List[Rows]) -> List[Rows]:
    """`best`, or the best of `_best_valued` over powers, by steps that halve, if the first is better."""
    power, step = _POWER, _POWER_STEP
    found = _best_valued(counts, capacity, depth, power)
    if _count(found) >= _count(best):
        return best
    best = found
    while step >= _POWER_STEP / 16:
        for other in (power - step, power + step):
            found = _best_valued(counts, capacity, depth, other)
            if _count(found) < _count(best):
                best, power = found, other
        step /= 2
    return best


def _best_valued(counts: np.ndarray, capacity: int, depth: int, power: float) -> List[Rows]:
    """Each sequence, from long to short, with the two others that fit beside it and are worth the most.

    What is left of a row is filled with the longest sequences that fit.
    """
    counts = counts.copy()
    worth = (np.arange(capacity + 1) / capacity) ** power
    values = np.where(counts > 0, worth, -1.0)
    values[0] = 0.0  # nothing
    rows: List[Rows] = []
    for size in range(capacity, 0, -1):
        while counts[size]:
            chosen, room = [size], capacity - size
            values[size] = worth[size] if counts[size] > 1 else -1.0
            fitting = values[: room + 1]
            # The most valuable one that fits beside each of `fitting`.
            beside = np.maximum.accumulate(fitting)[::-1]
            second = int((fitting + beside).argmax())
            if second:
                chosen.append(second)
                if counts[second] == chosen.count(second):
                    values[second] = -1.0
                third = int(values[: room - second + 1].argmax())
                chosen += [third] if third else []
            number = min(int(counts[each]) // chosen.count(each) for each in chosen)
            for each in chosen:
                counts[each] -= number
            rows.extend(
                _filled_up(counts, number, capacity - sum(chosen), depth - len(chosen), tuple(chosen))
            )
            values[1:] = np.where(counts[1:] > 0, worth[1:], -1.0)
    return rows
