"""A cache of encoded words in front of a tokeniser: most words of a text have occurred before.

Blanks (U+0020) separate words in BERT's normaliser and pre-tokeniser, which treat every other character by
itself, so a line's ids are those of its parts between blanks. A part may have more than one word, and
punctuation: "(see", "word,".
"""

from __future__ import annotations

from typing import Callable, Dict, List

import numpy as np

# Together some 50 MB. A full cache is emptied: memory stays flat however large the corpus is.
_MOST_PARTS = 1 << 18
_MOST_CHARACTERS = 1 << 23


class WordCache:
    """Encodes lines part by part, each part once.

    :param encode: the token ids of each text, which it must treat as independent of the others.
    """

    def __init__(self, encode: Callable[[List[str]], List[List[int]]]) -> None:
        self._encode = encode
        self._known: Dict[str, bytes] = {}  # ids as int32
        self._characters = 0

    def encode_lines(self, lines: List[str]) -> List[np.ndarray]:
        """Token ids of each line, int32 [tokens]."""
        parts = [line.split(" ") for line in lines]
        if len(self._known) > _MOST_PARTS or self._characters > _MOST_CHARACTERS:
            self._known, self._characters = {}, 0
        known = self._known
        # In order of their first occurrence, so that two runs do the same.
        missing = list(dict.fromkeys(part for line in parts for part in line if part not in known))
        for part, ids in zip(missing, self._encode(missing)):
            known[part] = np.array(ids, dtype=np.int32).tobytes()
            self._characters += len(part)
        # bytearray: the arrays may be written to.
        return [
            np.frombuffer(bytearray().join(map(known.__getitem__, line)), dtype=np.int32) for line in parts
        ]
