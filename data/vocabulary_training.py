"""Learning a WordPiece vocabulary with the tokenizers library, interruptibly, from text of any kind."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

# WordPiece encodes a longer word as [UNK]. The trainer's time grows with the square of a word's length.
LONGEST_WORD_CHARACTERS = 100
# Nor is anything longer than this without a blank text, even if punctuation cuts it into words, as in base64.
_LONGEST_RUN_CHARACTERS = 1000
_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD_CHARACTERS + 1},}}")
_WAIT_S = 0.2


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
    """At most `vocab_size` tokens with their ids, `first` first. Signals are handled at once."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(first),
        limit_alphabet=len(alphabet),
        initial_alphabet=list(alphabet),
        continuing_subword_prefix=continuation,
        show_progress=progress,
    )
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _train(learner, trainer, (learnable(document, normalizer) for document in documents))
    ids: Dict[str, int] = learner.get_vocab()
    return ids


def learnable(document: str, normalizer: normalizers.Normalizer) -> str:
    """The document without the words that are too long for the vocabulary, such as base64 or DNA."""
    splitter = pre_tokenizers.BertPreTokenizer()

    def words(run: re.Match[str]) -> str:
        # The normaliser sets Chinese characters apart; punctuation separates words too.
        parts = normalizer.normalize_str(run.group()).split()
        pieces = splitter.pre_tokenize_str(" ".join(p for p in parts if len(p) <= _LONGEST_RUN_CHARACTERS))
        return " ".join(word for word, _ in pieces if len(word) <= LONGEST_WORD_CHARACTERS)

    return _LONG_RUN.sub(words, document)


def frequent_characters(documents: Iterable[str], limit: int) -> List[str]:
    """The most frequent characters, in code point order."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    characters = [character for character in counts if not character.isspace()]
    characters.sort(key=lambda character: (-counts[character], character))
    return sorted(characters[:limit])


class _Cancelled(Exception):
    pass


def _train(learner: tokenizers.Tokenizer, trainer: Any, texts: Iterator[str]) -> None:
    """Trains in a thread: Python handles signals in the main thread, and only between two of its
    instructions, but a call of the trainer takes minutes."""
    cancelled = threading.Event()
    errors: List[BaseException] = []

    def passed_on() -> Iterator[str]:
        for text in texts:
            if cancelled.is_set():
                raise _Cancelled
            yield text

    def work() -> None:
        try:
            learner.train_from_iterator(passed_on(), trainer)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_WAIT_S)
    except BaseException:
        cancelled.set()
        thread.join(_WAIT_S)  # it doesn't end while it merges; then it ends with the process
        raise
    if errors:
        raise errors[0]
