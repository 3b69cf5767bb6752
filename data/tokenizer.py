"""BERT's WordPiece tokeniser, loaded from a vocabulary or trained on a corpus."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Protocol, Sequence, Tuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from .added_tokens import AddedToken, add_to, appended, beside_vocabulary, count_after_model, from_list
from .corpora import Corpus
from .files import DataError, local_path, open_plain, write_atomically
from .json_files import read_json
from .vocabulary_training import Sample, learn, passages, survey
from .word_cache import WordCache

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
_MOST_BYTES = 1 << 28  # of a vocabulary file; the largest published ones have some 20 MB
TRAINED_TOKENIZER = "train"  # name of a vocabulary that is trained on the corpus
CHECKPOINTS_TOKENIZER = "checkpoint"  # the one saved with the initial weights


class Tokenizer:
    """Text to token ids and back, with BERT's normalisation; equal fingerprints mean equal encodings.

    A special token in a text ("[MASK]") is ordinary text: special tokens are added when
    examples are built. It can be pickled, for worker processes.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lowercase: bool = True,
        strip_accents: Optional[bool] = None,
        added: Sequence[AddedToken] = (),
    ) -> None:
        """`vocabulary[i]` is the token with id i. `strip_accents` None: only when lowercasing, as BERT does.
        `added`: tokens of the vocabulary that are found in a text before it is split into words.

        Raises DataError for a missing special token and for a duplicate token.
        """
        self.vocabulary: Tuple[str, ...] = tuple(vocabulary)
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        # In the order of their ids; BERT's own special tokens are ordinary text.
        places = {token: place for place, token in enumerate(self.vocabulary)}
        self.added: Tuple[AddedToken, ...] = tuple(
            sorted(
                (token for token in added if token.content not in SPECIAL_TOKENS),
                key=lambda token: places[token.content],
            )
        )
        ids = _checked_ids(self.vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[t] for t in SPECIAL_TOKENS)
        self.special_ids: Tuple[int, ...] = tuple(sorted(ids[token] for token in SPECIAL_TOKENS))
        # bool [vocab_size]: whether a piece continues a word
        self.is_continuation = np.array([t.startswith(CONTINUATION) for t in self.vocabulary], dtype=bool)
        in_model = len(self.vocabulary) - count_after_model(self.vocabulary, self.added)
        self._encoder = tokenizers.Tokenizer(
            models.WordPiece(
                {token: ids[token] for token in self.vocabulary[:in_model]},
                unk_token="[UNK]",
                continuing_subword_prefix=CONTINUATION,
            )
        )
        self._encoder.normalizer = _normalizer(lowercase, strip_accents)
        self._encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._encoder.decoder = decoders.WordPiece(prefix=CONTINUATION)
        add_to(self._encoder, self.added)
        # Added tokens may contain blanks, or take those beside them.
        self._words = None if self.added else WordCache(self._ids)

    def __reduce__(self) -> Tuple[Any, ...]:
        return _rebuild, (self.vocabulary, self.lowercase, self.strip_accents, self.added)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode_lines(self, lines: List[str]) -> List[np.ndarray]:
        """Token ids of each line, int32 [tokens], without special tokens; none for a blank line."""
        if self._words is not None:
            return self._words.encode_lines(lines)
        return [np.array(ids, dtype=np.int32) for ids in self._ids(lines)]

    def _ids(self, texts: List[str]) -> List[List[int]]:
        encodings = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, text: str) -> Tuple[np.ndarray, np.ndarray]:
        """Token ids, int32 [tokens], and their character ranges in `text`, int32 [tokens, 2]: start, and end
        (exclusive); without special tokens."""
        encoding = self._encoder.encode(text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        return np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int32).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens included."""
        text: str = self._encoder.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    def fingerprint(self) -> str:
        """A hex digest of everything that affects the encoding of text."""
        digest = hashlib.sha256(f"wordpiece-1 {self.lowercase} {self.strip_accents}\n".encode())
        digest.update("\n".join(self.vocabulary).encode())
        if self.added:
            digest.update(json.dumps(self.added).encode())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes vocab.txt, tokenizer.json and tokenizer_config.json, which transformers can read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": True,
            "model_max_length": 512,
            **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
        }
        write_atomically(folder / "vocab.txt", "".join(f"{t}\n" for t in self.vocabulary).encode())
        write_atomically(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
        write_atomically(folder / "tokenizer.json", self._with_special_tokens().to_str(pretty=True).encode())

    def _with_special_tokens(self) -> tokenizers.Tokenizer:
        """In the format of other programs: adds [CLS] and [SEP], and recognises special tokens in text."""
        other = tokenizers.Tokenizer.from_str(self._encoder.to_str())
        other.add_special_tokens(list(SPECIAL_TOKENS))
        other.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )
        return other


def _rebuild(
    vocabulary: Sequence[str], lowercase: bool, strip_accents: Optional[bool], added: Sequence[AddedToken]
) -> Tokenizer:
    return Tokenizer(vocabulary, lowercase=lowercase, strip_accents=strip_accents, added=added)


def _normalizer(lowercase: bool, strip_accents: Optional[bool]) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)


def _checked_ids(vocabulary: Sequence[str]) -> Dict[str, int]:
    for number, token in enumerate(vocabulary):
        try:
            token.encode("utf-8")
        except UnicodeEncodeError:  # JSON can write half of a pair of escapes
            raise DataError(
                f"the token {token[:60]!a}, id {number}, has half of a surrogate pair, which is no text. Use "
                "an undamaged copy."
            ) from None
        if "\n" in token:
            raise DataError(
                f"the token {token[:60]!r}, id {number}, has a line break, which no vocab.txt can."
            )
    ids = {token: i for i, token in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        token = next(token for i, token in enumerate(vocabulary) if ids[token] != i)
        raise DataError(
            f"the vocabulary has {token!r} twice, as id {vocabulary.index(token)} and as id {ids[token]}: "
            "every token needs one id. Remove the second, or use an undamaged copy."
        )
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise DataError(
            f"the vocabulary of {len(vocabulary)} tokens lacks {', '.join(missing)}: "
            "it isn't a BERT vocabulary. BERT's have all of " + " ".join(SPECIAL_TOKENS) + "."
        )
    return ids


def train_tokenizer(
    corpus: Corpus,
    vocab_size: int,
    *,
    lowercase: bool = True,
    progress: bool = False,
    notes: Optional[List[str]] = None,
) -> Tokenizer:
    """A WordPiece vocabulary of exactly `vocab_size` tokens for the corpus; deterministic.

    The special tokens come first. If the corpus has too few words, [unusedN] tokens fill the vocabulary.
    Reads the corpus twice; words that are too long to be encoded are left out. Of a text with too many
    distinct words for the host's memory (see Sample) it is trained on a part, which a line in `notes` says.
    Raises DataError if `vocab_size` is too small for the single characters.
    """
    normalizer = _normalizer(lowercase, None)
    sample = Sample()
    normalised = map(normalizer.normalize_str, passages(corpus.documents()))
    characters = survey(normalised, _alphabet_limit(vocab_size), sample)
    if sample.halvings and notes is not None:
        notes.append(sample.note(corpus.name))
    # The trainer numbers continuation characters in hash-table order, and breaks ties between merges by
    # number. Passing the characters as special tokens numbers them first, which makes it deterministic.
    first = [*SPECIAL_TOKENS, *(CONTINUATION + c for c in characters), *characters]
    if len(first) > vocab_size:
        raise DataError(
            f"vocab_size {vocab_size} is too small: special tokens and single characters of {corpus.name!r} "
            f"alone are {len(first)}. Set vocab_size to {2 * len(first)} or more."
        )
    ids = learn(
        sample.of(passages(corpus.documents())),
        vocab_size,
        normalizer=normalizer,
        first=first,
        alphabet=characters,
        continuation=CONTINUATION,
        progress=progress,
    )
    vocabulary = sorted(ids, key=lambda token: ids[token])
    vocabulary += [f"[unused{n}]" for n in range(vocab_size - len(vocabulary))]
    return Tokenizer(vocabulary, lowercase=lowercase)


def _alphabet_limit(vocab_size: int) -> int:
    # Each character takes two ids (initial and continuing). BERT's limit is 1000 for 30522 tokens.
    return max(100, min(1000, vocab_size // 30))


def load_tokenizer(source: str, *, lowercase: bool = True) -> Tokenizer:
    """Loads a vocab.txt, a tokenizer.json, a folder with either, or a vocabulary from the Hugging Face hub.

    `lowercase` applies to a bare vocab.txt: a tokenizer.json, or a folder's tokenizer_config.json, specifies
    its normalisation. Raises DataError for anything but a BERT WordPiece vocabulary.
    """
    path = local_path(source)
    if path.is_dir():
        return _load_folder(path, lowercase)
    if not path.is_file():
        if source.startswith((".", "/", "~")) or source.endswith((".txt", ".json")) or source.count("/") > 1:
            raise DataError(f"no tokeniser at {source!r}: no such file or folder. Check the path.")
        return _load_folder(_download(source), lowercase)
    if path.suffix == ".json":
        return _load_json(path)
    return _load_vocabulary(path, lowercase, None, {})


def _load_folder(folder: Path, lowercase: bool) -> Tokenizer:
    config_file = folder / "tokenizer_config.json"
    config = _read_object(config_file) if config_file.is_file() else {}
    if (folder / "tokenizer.json").is_file():
        # transformers 5 builds BERT's normaliser from tokenizer_config.json alone; its class for any
        # tokenizer.json takes the normaliser of that. Where no class is named, the model's type decides.
        named = config.get("tokenizer_class")
        is_berts = config_file.is_file() and (
            named not in _ANY_TOKENIZER if named is not None else _is_bert(folder / "config.json")
        )
        return _load_json(
            folder / "tokenizer.json", _normalisation(config_file, config) if is_berts else None
        )
    if not (folder / "vocab.txt").is_file():
        raise DataError(
            f"no tokeniser in folder {str(folder)!r}: it has neither tokenizer.json nor vocab.txt. "
            "Name a folder that a BERT tokeniser was saved in, or a vocabulary file."
        )
    lowercase, strip_accents = _normalisation(config_file, config, lowercase)
    added = beside_vocabulary(folder, config)
    return _load_vocabulary(folder / "vocab.txt", lowercase, strip_accents, added)


_ANY_TOKENIZER = ("PreTrainedTokenizerFast", "TokenizersBackend")


def _is_bert(model_config: Path) -> bool:
    return model_config.is_file() and _read_object(model_config).get("model_type") == "bert"


def _normalisation(file: Path, config: Dict[str, Any], lowercase: bool = True) -> Tuple[bool, Optional[bool]]:
    """Whether tokenizer_config.json's tokeniser lower-cases (`lowercase` if it doesn't say), and whether it
    strips accents."""
    if not _boolean(file, config, "tokenize_chinese_chars", True):
        raise _unsupported(file, "tokenize_chinese_chars: false")
    return _boolean(file, config, "do_lower_case", lowercase), _strip_accents(file, config)


def _load_vocabulary(
    file: Path, lowercase: bool, strip_accents: Optional[bool], added: Dict[AddedToken, int]
) -> Tokenizer:
    vocabulary = appended(file, vocabulary_lines(_read(file)), added)
    return _named(file, vocabulary, lowercase, strip_accents, list(added))


def vocabulary_lines(text: str) -> List[str]:
    """The tokens of a vocab.txt; line ends of Windows and blank lines at the end change nothing."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip(" \t"):
        lines.pop()
    return lines


def _load_json(file: Path, normalisation: Optional[Tuple[bool, Optional[bool]]] = None) -> Tokenizer:
    """The tokeniser of a tokenizer.json; with another `normalisation` (lower case, accents), if given."""
    content = _read_object(file)
    model = _object(file, content, "model")
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix") != CONTINUATION:
        raise _unsupported(file, f"a {str(model.get('type'))[:60]} model")
    normalizer = _object(file, content, "normalizer")
    if normalizer.get("type") != "BertNormalizer" or not (
        _boolean(file, normalizer, "clean_text", False)
        and _boolean(file, normalizer, "handle_chinese_chars", False)
    ):
        raise _unsupported(file, f"the normaliser {json.dumps(normalizer)[:200]}")
    own = _boolean(file, normalizer, "lowercase", None), _strip_accents(file, normalizer)
    added = from_list(file, content.get("added_tokens"))
    ids = {
        **{token.content: number for token, number in added.items()},
        **_object(file, model, "vocab"),
    }
    wrong = next((token for token, number in ids.items() if type(number) is not int), None)
    if wrong is not None:
        raise _damaged(file, f"the id of {wrong[:60]!r} is {json.dumps(ids[wrong])[:60]}, not a whole number")
    vocabulary = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in vocabulary] != list(range(len(vocabulary))):
        raise DataError(f"{str(file)!r} does not number its {len(vocabulary)} tokens from 0 without gaps.")
    return _named(file, vocabulary, *(normalisation or own), list(added))


def _object(file: Path, content: Dict[str, Any], key: str) -> Dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _damaged(file, f"{key} is {json.dumps(value)[:60]}, not an object")
    return value


def _boolean(file: Path, content: Dict[str, Any], key: str, default: Optional[bool]) -> bool:
    value = content.get(key, default)
    if not isinstance(value, bool):
        raise _damaged(file, f"{key} is {json.dumps(value)[:60]}, not true or false")
    return value


def _strip_accents(file: Path, content: Dict[str, Any]) -> Optional[bool]:
    return None if content.get("strip_accents") is None else _boolean(file, content, "strip_accents", None)


def _damaged(file: Path, what: str) -> DataError:
    return DataError(f"{str(file)!r} is damaged: {what}. Use an undamaged copy.")


def _named(
    file: Path,
    vocabulary: Sequence[str],
    lowercase: bool,
    strip_accents: Optional[bool],
    added: Sequence[AddedToken],
) -> Tokenizer:
    if not vocabulary:
        raise DataError(f"{str(file)!r} is empty: a vocabulary has one token per line.")
    try:
        return Tokenizer(vocabulary, lowercase=lowercase, strip_accents=strip_accents, added=added)
    except DataError as error:
        raise DataError(f"{str(file)!r}: {error}") from None


def _unsupported(file: Path, what: str) -> DataError:
    return DataError(
        f"{str(file)!r} has {what}; supported are BERT's: WordPiece with {CONTINUATION!r}, BertNormalizer "
        "with clean_text and handle_chinese_chars. Use a BERT tokeniser, or train one on your corpus."
    )


def _read(file: Path) -> str:
    try:
        with open_plain(file) as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DataError(f"{str(file)!r} has more than {_MOST_BYTES} bytes, which no vocabulary has.")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"cannot read {str(file)!r}: {error.strerror}. Check that you may read it."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8 text (byte {error.start}): not a vocabulary.") from error


def _read_object(file: Path) -> Dict[str, Any]:
    content = read_json(file, most_bytes=_MOST_BYTES)
    if not isinstance(content, dict):
        raise DataError(f"{str(file)!r} isn't a JSON object, so it isn't a tokeniser.")
    return content


def _download(name: str) -> Path:
    """The hub cache's folder with the tokeniser files of a model on the Hugging Face hub."""
    try:
        from huggingface_hub import snapshot_download

        files = ["tokenizer.json", "vocab.txt", "tokenizer_config.json"]
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # the hub's client also raises its HTTP library's errors, of many types
        raise DataError(
            f"there is no file or folder {name!r}, and downloading it from the Hugging Face hub failed: "
            f"{type(error).__name__}: {error}. Check the name and the network, or name a vocabulary file."
        ) from error


class VocabularyOptions(Protocol):
    """The vocabulary, and the number of token ids of the model."""

    @property
    def tokenizer(self) -> str: ...

    @property
    def lowercase(self) -> bool: ...

    @property
    def vocab_size(self) -> int: ...


def named_tokenizer(options: VocabularyOptions) -> Tokenizer:
    """The tokeniser that the options name. Raises DataError if it has more tokens than the model has ids."""
    tokenizer = load_tokenizer(options.tokenizer, lowercase=options.lowercase)
    refuse_larger_vocabulary(tokenizer, options)
    warn_of_capitals(tokenizer, options.tokenizer)
    return tokenizer


def warn_of_capitals(tokenizer: Tokenizer, source: str) -> None:
    """Prints a warning if the vocabulary has capitals, which lower-cased text never matches."""
    added = {token.content for token in tokenizer.added}
    lost = [
        token
        for token in tokenizer.vocabulary
        if token != token.lower() and token not in added and not token.startswith("[")
    ]
    if tokenizer.lowercase and lost:
        print(
            f"warning: {len(lost)} of the {tokenizer.vocab_size} tokens of {source} have capitals, "
            f"{lost[0]!r} first, but text is lower-cased, so they never occur: if it is a cased vocabulary, "
            "use --no-lowercase, or set do_lower_case to false in its tokenizer_config.json",
            file=sys.stderr,
        )


def refuse_larger_vocabulary(tokenizer: Tokenizer, options: VocabularyOptions) -> None:
    """Raises DataError if the tokeniser has more tokens than the model has ids."""
    excess = tokenizer.vocab_size - options.vocab_size
    if excess > 0:
        raise DataError(
            f"the vocabulary {options.tokenizer} has {tokenizer.vocab_size} tokens, {excess} more than "
            f"vocab_size {options.vocab_size}: set vocab_size to {tokenizer.vocab_size}"
        )


def fine_tuning_tokenizer(options: VocabularyOptions, checkpoint: Optional[Path]) -> Tokenizer:
    """The run's tokeniser. Raises DataError if there is none or it is larger than the model's vocabulary."""
    if options.tokenizer == TRAINED_TOKENIZER:
        raise DataError(
            f"tokenizer is {TRAINED_TOKENIZER!r}, but fine-tuning trains no vocabulary: set tokenizer to "
            f"{CHECKPOINTS_TOKENIZER!r}, to a vocab.txt, a folder or a Hugging Face name"
        )
    if options.tokenizer != CHECKPOINTS_TOKENIZER:
        return named_tokenizer(options)
    if checkpoint is None:
        raise DataError(
            f"tokenizer is {CHECKPOINTS_TOKENIZER!r}, but no --checkpoint is given: give one, or for random "
            "weights a vocabulary, for example --tokenizer vocab.txt"
        )
    tokenizer = load_tokenizer(str(checkpoint), lowercase=options.lowercase)
    refuse_larger_vocabulary(tokenizer, options)
    warn_of_capitals(tokenizer, str(checkpoint))
    return tokenizer
