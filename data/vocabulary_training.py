"""Learning a WordPiece vocabulary with the tokenizers library, from text of any kind.

The library's trainer takes minutes in which Python handles no signal, and where the host refuses memory it
aborts its process. So it runs in a process beside this one, which gets the text through a pipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import IO, Any, BinaryIO, Dict, Iterable, Iterator, List, Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from .files import DataError

# WordPiece encodes a longer word as [UNK]. The trainer's time grows with the square of a word's length.
LONGEST_WORD_CHARACTERS = 100
# Nor is anything longer than this without a blank text, even if punctuation cuts it into words, as in base64.
_LONGEST_RUN_CHARACTERS = 1000
_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD_CHARACTERS + 1},}}")
# The trainer takes some 0.9 kB for each distinct word: of a text with more of them it gets a sample.
MOST_WORDS = 500_000
# Passages end at a blank; one has far fewer words than a sample may have.
_PASSAGE = re.compile(r"(?s).{1,50000}\S*")
# Punctuation separates words. Here it need not all be known: a sample with fewer words is all right.
_WORD = re.compile(r"[^\s!-/:-@\[-`{-~\u00ab\u00bb\u2000-\u206f\u3000-\u303f]+")
_COUNTED_WORD_IN = 16
_LENGTH = struct.Struct("<Q")
_ROOT = Path(__file__).resolve().parents[1]
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import data.vocabulary_training as t; t.serve()"
_NO_MEMORY = (b"memory allocation of", b"MemoryError", b"Cannot allocate memory", b"failed to map segment")


def learn(
    documents: Iterable[str],
    vocab_size: int,
    *,
    normalizer: normalizers.Normalizer,
    first: Sequence[str],
    alphabet: Sequence[str],
    continuation: str,
    progress: bool,
) -> Dict[str, int]:
    """At most `vocab_size` tokens with their ids, `first` first. Signals are handled at once.

    Raises DataError if the host has too little memory.
    """
    settings = {
        "vocab_size": vocab_size,
        "min_frequency": 2,
        "special_tokens": list(first),
        "limit_alphabet": len(alphabet),
        "initial_alphabet": list(alphabet),
        "continuing_subword_prefix": continuation,
        "show_progress": progress,
    }
    with tempfile.TemporaryFile() as said:
        # The trainer's progress bar is for the terminal, an abort's words aren't.
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if progress else said,
            start_new_session=True,  # signals of the terminal are for this process, which ends the other
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it has ended: see below
                _send(pipe, pickle.dumps((normalizer, settings)))
                for document in documents:
                    _send(pipe, learnable(document, normalizer).encode("utf-8"))
            result = process.stdout.read()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        said.seek(0)
        words = said.read()
        if status < 0 or any(word in words for word in _NO_MEMORY):
            raise DataError(
                f"the vocabulary's training ran out of memory or was killed (status {status}): use a larger "
                "host, less text or a lower vocab_size, or name a finished vocabulary (tokenizer)"
            )
        if status:
            raise RuntimeError(f"the vocabulary's training failed: {words.decode('utf-8', 'replace')}")
    ids: Dict[str, int] = pickle.loads(result)
    return ids


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)


def _received(pipe: BinaryIO) -> Iterator[bytes]:
    for header in iter(lambda: pipe.read(_LENGTH.size), b""):
        yield pipe.read(_LENGTH.unpack(header)[0])


def serve() -> None:
    """The process beside: settings and texts from its input, the vocabulary to its output."""
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    messages = _received(sys.stdin.buffer)
    normalizer, settings = pickle.loads(next(messages))
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer: Any = trainers.WordPieceTrainer(**settings)
    learner.train_from_iterator((text.decode("utf-8") for text in messages), trainer)
    sys.stdout.buffer.write(pickle.dumps(learner.get_vocab()))


def _follow_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def learnable(document: str, normalizer: normalizers.Normalizer) -> str:
    """The document without the words that are too long for the vocabulary, such as base64 or DNA."""
    splitter = pre_tokenizers.BertPreTokenizer()

    def words(run: re.Match[str]) -> str:
        # The normaliser sets Chinese characters apart; punctuation separates words too.
        parts = normalizer.normalize_str(run.group()).split()
        pieces = splitter.pre_tokenize_str(" ".join(p for p in parts if len(p) <= _LONGEST_RUN_CHARACTERS))
        return " ".join(word for word, _ in pieces if len(word) <= LONGEST_WORD_CHARACTERS)

    return _LONG_RUN.sub(words, document)


class Sample:
    """Which passages of a text the trainer gets: all, or a half, a quarter ... with at most MOST_WORDS words.

    Each passage has a level, decided by its number: half of them have at least 1, a quarter at least 2, and
    so on, in no period that a text might have too. The sample's passages have at least `halvings`. Distinct
    words are estimated from those with a certain hash, so that counting takes little memory.
    """

    def __init__(self) -> None:
        self.halvings = 0
        self._levels: Dict[str, int] = {}  # of the counted words: the highest level of their passages

    def add(self, number: int, passage: str) -> None:
        """Counts the words of the normalised passage with this number, from 0."""
        level = _level(number)
        if level < self.halvings:
            return
        for word in set(_WORD.findall(passage)):
            if (
                zlib.crc32(word.encode("utf-8")) % _COUNTED_WORD_IN == 0
                and len(word) <= LONGEST_WORD_CHARACTERS
            ):
                self._levels[word] = max(level, self._levels.get(word, 0))
        while self.words > MOST_WORDS and self.halvings < _HIGHEST_LEVEL:
            self.halvings += 1
            self._levels = {word: at for word, at in self._levels.items() if at >= self.halvings}

    @property
    def words(self) -> int:
        """About how many distinct words it has."""
        return len(self._levels) * _COUNTED_WORD_IN

    def of(self, passages: Iterable[str]) -> Iterator[str]:
        """Those that are in the sample: never none."""
        return (passage for number, passage in enumerate(passages) if _level(number) >= self.halvings)

    def note(self, corpus: str) -> str:
        """A line for the log."""
        return (
            f"vocabulary: trained on 1/{2**self.halvings} of {corpus}, drawn evenly, with about "
            f"{self.words:,} distinct words: the whole has more than {MOST_WORDS:,}"
        )


_HIGHEST_LEVEL = 64


def _level(number: int) -> int:
    """The zeros that end a hash of the number; the first passage is in every sample."""
    if number == 0:
        return _HIGHEST_LEVEL
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest()
    drawn = int.from_bytes(digest, "little")
    return (drawn & -drawn).bit_length() - 1 if drawn else _HIGHEST_LEVEL


def passages(documents: Iterable[str]) -> Iterator[str]:
    """The documents, long ones cut at blanks."""
    return (passage for document in documents for passage in _PASSAGE.findall(document))


def survey(passages: Iterable[str], most_characters: int, sample: Sample) -> List[str]:
    """The most frequent characters of normalised passages, in code point order; and what `sample` is of."""
    counts: Counter[str] = Counter()
    for number, passage in enumerate(passages):
        counts.update(passage)
        sample.add(number, passage)
    characters = [character for character in counts if not character.isspace()]
    characters.sort(key=lambda character: (-counts[character], character))
    return sorted(characters[:most_characters])
