"""Tokens that users add to a vocabulary: cut out of a text before its words are split.

They are in `added_tokens` of tokenizer.json, `added_tokens_decoder` of tokenizer_config.json, or (oldest)
added_tokens.json. BERT's own special tokens are among them, but are ordinary text to this program.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, NoReturn, Sequence, Tuple

import tokenizers

from .files import DataError
from .json_files import read_json

FILE = "added_tokens.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class AddedToken(NamedTuple):
    """`normalized`: sought in the normalised text. The other flags are those of tokenizers.AddedToken."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


def add_to(encoder: tokenizers.Tokenizer, tokens: Iterable[AddedToken]) -> None:
    """Makes `encoder` produce the tokens; those that its model lacks get the next ids, in this order.

    One that the normaliser leaves nothing of, such as a zero-width space, is sought in the raw text:
    tokenizers finds the empty text everywhere, and panics or never ends.
    """

    def is_sought_in_normalised(token: AddedToken) -> bool:
        left = (
            token.content if encoder.normalizer is None else encoder.normalizer.normalize_str(token.content)
        )
        return token.normalized and bool(left)

    encoder.add_tokens(
        [
            tokenizers.AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=is_sought_in_normalised(token),
                special=token.special,
            )
            for token in tokens
        ]
    )


def count_after_model(vocabulary: Sequence[str], added: Iterable[AddedToken]) -> int:
    """The number of added tokens at the vocabulary's end, which the WordPiece model doesn't need to have."""
    contents = {token.content for token in added}
    count = 0
    while count < len(vocabulary) and vocabulary[-1 - count] in contents:
        count += 1
    return count


def from_list(file: Path, entries: Any) -> Dict[AddedToken, int]:
    """tokenizer.json's `added_tokens`, each with its id. Raises DataError."""
    if entries is None:
        return {}
    if not isinstance(entries, list):
        _damaged(file, f"added_tokens is {json.dumps(entries)[:60]}, not a list")
    return dict(_entry(file, entry, isinstance(entry, dict) and entry.get("id")) for entry in entries)


def beside_vocabulary(folder: Path, config: Dict[str, Any]) -> Dict[AddedToken, int]:
    """The added tokens of a folder without tokenizer.json, each with its id. Raises DataError."""
    config_file = folder / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder")
    if decoder:
        if not isinstance(decoder, dict):
            _damaged(config_file, f"added_tokens_decoder is {json.dumps(decoder)[:60]}, not an object")
        return dict(
            _entry(config_file, entry, int(number) if number.isascii() and number.isdigit() else number)
            for number, entry in decoder.items()
        )
    file = folder / FILE
    if not file.is_file():
        return {}
    content = read_json(file)
    if not isinstance(content, dict):
        _damaged(file, "it isn't an object of tokens and ids")
    return dict(_entry(file, {"content": token}, number) for token, number in content.items())


def appended(file: Path, vocabulary: List[str], tokens: Dict[AddedToken, int]) -> List[str]:
    """The vocabulary with those tokens that it lacks. Raises DataError unless their ids continue its ids."""
    known = set(vocabulary)
    new = sorted((number, token.content) for token, number in tokens.items() if token.content not in known)
    expected = list(range(len(vocabulary), len(vocabulary) + len(new)))
    if [number for number, _ in new] != expected:
        raise DataError(
            f"{str(file)!r} adds tokens with the ids {', '.join(str(number) for number, _ in new[:5])}, but "
            f"the vocabulary beside it has {len(vocabulary)} tokens, so they must continue from "
            f"{len(vocabulary)}. Use files that were saved together."
        )
    return vocabulary + [content for _, content in new]


def _entry(file: Path, entry: Any, number: Any) -> Tuple[AddedToken, int]:
    named = isinstance(entry, dict) and isinstance(entry.get("content"), str)
    if not named or type(number) is not int:
        _damaged(file, f"added_tokens has {json.dumps(entry)[:60]}, without content or id")
    flags = {name: entry[name] for name in _FLAGS if name in entry}
    wrong = next((name for name, flag in flags.items() if not isinstance(flag, bool)), None)
    if wrong is not None:
        _damaged(file, f"{wrong} of the added token {entry['content'][:60]!r} is not true or false")
    if not entry["content"]:
        _damaged(file, f"the added token with id {number} is empty")
    return AddedToken(entry["content"], **flags), number


def _damaged(file: Path, what: str) -> NoReturn:
    raise DataError(f"{str(file)!r} is damaged: {what}. Use an undamaged copy.")
