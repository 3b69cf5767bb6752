"""The windows of a set of questions as arrays that are made once, cached and memory-mapped.

cache_folder/squad/IDENTITY has one .npy file an array and manifest.json, which is written last, with the
files' checksums: a folder without it, or with a damaged file, is made again. Letters: N windows, S tokens.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from tqdm import tqdm

from data.atomic import write_atomically
from data.errors import DataError
from data.locking import exclusive
from data.squad.files import QuestionSet
from data.squad.windows import Window, WindowOptions, make_windows
from data.tokenizer import Tokenizer

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_IN_A_CHUNK = 1024  # windows that are held as objects while they are made


@dataclass(frozen=True)
class Features:
    """Windows in the order of their questions; the arrays belong together row by row.

    input_ids [N, S]; tokens [N], how many of them aren't padding; context_start [N], the first token of the
    context; question [N], the question's index in its set; start_position, end_position [N]; offsets
    [N, S, 2] and is_max_context [N, S]: see Window. All integers but the last.
    """

    identity: str
    pad_id: int
    input_ids: np.ndarray
    tokens: np.ndarray
    context_start: np.ndarray
    question: np.ndarray
    start_position: np.ndarray
    end_position: np.ndarray
    offsets: np.ndarray
    is_max_context: np.ndarray

    def __len__(self) -> int:
        return len(self.question)

    @property
    def sequence_length(self) -> int:
        return int(self.input_ids.shape[1])


_ARRAYS = tuple(name for name in Features.__dataclass_fields__ if name not in ("identity", "pad_id"))


def prepare_features(
    data: QuestionSet,
    tokenizer: Tokenizer,
    options: WindowOptions,
    *,
    cache_folder: Path,
    progress: bool = False,
) -> Features:
    """The windows of `data`, from the cache if they are there; another process that makes them is waited for.

    Raises DataError for a context without a token and where the cache folder can't be used.
    """
    identity = _identity(data, tokenizer, options)
    folder = cache_folder / "squad" / identity
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock"):
            arrays = _load(folder)
            if arrays is None:
                _write(folder, _arrays(data, tokenizer, options, progress))
                arrays = _load(folder)
    except OSError as error:
        raise DataError(
            f"cannot use {error.filename or folder}: {error.strerror or error}. Prepared data is kept in "
            f"cache_folder {cache_folder}: make room and check that you may write there, or set another"
        ) from error
    assert arrays is not None
    return Features(identity, tokenizer.pad_id, **arrays)


def _identity(data: QuestionSet, tokenizer: Tokenizer, options: WindowOptions) -> str:
    """The same wherever questions, vocabulary and lengths are the same, whatever the file's name."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([FORMAT_VERSION, tokenizer.fingerprint(), asdict(options)]).encode())
    for question in data.questions:
        answers = [(answer.text, answer.start) for answer in question.answers]
        digest.update(json.dumps([question.id, question.question, question.context, answers]).encode())
    return "squad-" + digest.hexdigest()


def _arrays(
    data: QuestionSet, tokenizer: Tokenizer, options: WindowOptions, progress: bool
) -> Dict[str, np.ndarray]:
    chunks: List[Dict[str, np.ndarray]] = []
    held: List[Window] = []
    with tqdm(
        total=len(data.questions),
        desc=f"windows of {data.name}",
        unit=" questions",
        disable=not progress,
        leave=False,
    ) as bar:
        for window in make_windows(data, tokenizer, options):
            bar.update(window.question - bar.n)
            held.append(window)
            if len(held) == _IN_A_CHUNK:
                chunks.append(_columns(held, tokenizer.vocab_size))
                held = []
    if held:
        chunks.append(_columns(held, tokenizer.vocab_size))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in _ARRAYS}


def _columns(windows: List[Window], vocab_size: int) -> Dict[str, np.ndarray]:
    token_type = np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32

    def stacked(name: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(window, name)) for window in windows])

    return {
        "input_ids": stacked("input_ids").astype(token_type),
        "tokens": np.array([window.attention_mask.sum() for window in windows], dtype=np.int32),
        "context_start": np.array([window.token_type_ids.argmax() for window in windows], dtype=np.int32),
        **{
            name: stacked(name).astype(np.int32)
            for name in ("question", "start_position", "end_position", "offsets")
        },
        "is_max_context": stacked("is_max_context"),
    }


def _write(folder: Path, arrays: Dict[str, np.ndarray]) -> None:
    checksums = {}
    for name, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        checksums[name] = zlib.crc32(content.getbuffer())
        write_atomically(folder / f"{name}.npy", content.getvalue())
    write_atomically(folder / _MANIFEST, json.dumps({"crc32": checksums}).encode())


def _load(folder: Path) -> Optional[Dict[str, np.ndarray]]:
    """The arrays of a folder, mapped; None if they have to be made (again)."""
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        return None
    try:
        checksums: Dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["crc32"]
        for name in _ARRAYS:
            file = folder / f"{name}.npy"
            if _crc32(file) != checksums[name]:
                raise ValueError(f"the checksum of {file} is wrong")
        # Plain arrays over the maps: slicing them is several times faster than slicing numpy.memmaps.
        return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _ARRAYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"warning: prepared data is damaged and made again: {error}", file=sys.stderr)
        return None


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 22), b""):
            checksum = zlib.crc32(block, checksum)
    return checksum
