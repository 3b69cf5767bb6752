"""Examples as BERT's inputs: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP], then [PAD].

Too long pairs lose tokens at the end of the longer text, one by one (Devlin et al. 2018). Letters: N
examples, S tokens of a sequence, B rows of a batch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from ipu.keys import REQUIRED

from ..arrays import kept_arrays
from ..batches import Batch, SampleDataset
from ..keys import DataKeys, ExampleKeys
from ..masking import IGNORED_LABEL
from ..tokenizer import Tokenizer
from .files import Columns, ExampleSet, read_examples
from .tasks import GLUE_TASKS, GlueTask

_FORMAT = 1
_NO_NUMBER = -1e30  # a number that the loss ignores: model.heads.NO_NUMBER
_ARRAYS = ("input_ids", "tokens", "second", "truncated")
_CHUNK = 8192  # texts encoded at a time


@dataclass(frozen=True)
class GlueDataOptions(ExampleKeys, DataKeys):
    """The configuration's keys that affect examples and vocabulary; for tokenizer, see SquadDataOptions."""

    vocab_size: int = REQUIRED

    @property
    def task(self) -> GlueTask:
        return GLUE_TASKS[self.glue_task]


@dataclass(frozen=True)
class GlueFeatures:
    """Examples in order, as arrays: input_ids [N, S]; tokens [N], those before the padding; second [N], the
    first token of the second text, or `tokens` without one; labels [N], classes (int32) or numbers (float32).

    `truncated` counts the examples that lost tokens.
    """

    identity: str
    pad_id: int
    input_ids: np.ndarray
    tokens: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PreparedExamples:
    """Examples and their features."""

    examples: ExampleSet
    features: GlueFeatures

    def __str__(self) -> str:
        count, cut = len(self.features), self.features.truncated
        longest = int(self.features.tokens.max())
        text = f"{self.examples.name}: {count:,} examples, {longest} tokens at most"
        return text + (f", {cut:,} truncated" if cut else "")


def read_glue_split(options: GlueDataOptions, split: str, classes: Sequence[str] = ()) -> ExampleSet:
    """The examples of "train" or "validation". Raises DataError."""
    source = options.train_data if split == "train" else options.validation_data
    return read_glue_source(options, source, split, classes)


def read_glue_source(
    options: GlueDataOptions, source: Optional[str], split: str, classes: Sequence[str] = ()
) -> ExampleSet:
    """The examples of a source for `split`, such as a test set. Raises DataError."""
    columns = Columns(options.text_columns or (), options.label_column)
    return read_examples(source, split, options.task, columns=columns, classes=classes)


def prepare_examples(
    examples: ExampleSet,
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    cache_folder: Path,
    classes: Sequence[str] = (),
) -> PreparedExamples:
    """The examples with their features, from the cache if possible. `classes` is the order of the model's
    classes, by default the set's. Raises DataError if the cache folder can't be used."""
    identity = _identity(examples, tokenizer, sequence_length)
    arrays = kept_arrays(
        cache_folder / "glue" / identity,
        _ARRAYS,
        lambda: _encode(examples, tokenizer, sequence_length),
        lambda arrays: _problem(arrays, len(examples.examples), tokenizer.vocab_size, sequence_length),
        cache_folder=cache_folder,
    )
    labels = _labels(examples, classes or examples.classes)
    labelled = hashlib.blake2b(labels.tobytes() + json.dumps(list(classes)).encode(), digest_size=8)
    features = GlueFeatures(
        f"{identity}-{labelled.hexdigest()}",
        tokenizer.pad_id,
        input_ids=arrays["input_ids"],
        tokens=arrays["tokens"],
        second=arrays["second"],
        labels=labels,
        truncated=int(arrays["truncated"].sum()),
    )
    return PreparedExamples(examples, features)


def _identity(examples: ExampleSet, tokenizer: Tokenizer, sequence_length: int) -> str:
    """Equal if texts, vocabulary and length are equal, independent of the file's name."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_FORMAT, tokenizer.fingerprint(), sequence_length]).encode())
    for example in examples.examples:
        digest.update(json.dumps(example.texts).encode())
    return "glue-" + digest.hexdigest()


def _labels(examples: ExampleSet, classes: Sequence[str]) -> np.ndarray:
    if not examples.classes:
        numbers = [_NO_NUMBER if one.label is None else one.label for one in examples.examples]
        return np.array(numbers, dtype=np.float32)
    # A model's names may differ from the data's in their case only.
    number_of = {name.lower(): number for number, name in enumerate(classes)}
    number_of.update({name: number for number, name in enumerate(classes)})
    return np.array(
        [
            IGNORED_LABEL
            if one.label is None
            else number_of.get(str(one.label), number_of.get(str(one.label).lower()))
            for one in examples.examples
        ],
        dtype=np.int32,
    )


def encode_texts(
    texts: Sequence[Tuple[str, ...]], tokenizer: Tokenizer, sequence_length: int
) -> Dict[str, np.ndarray]:
    """The arrays of GlueFeatures for texts or pairs, all of the same number of texts."""
    ids = np.full((len(texts), sequence_length), tokenizer.pad_id, dtype=np.int32)
    tokens, second = np.zeros(len(texts), dtype=np.int32), np.zeros(len(texts), dtype=np.int32)
    truncated = np.zeros(len(texts), dtype=np.int32)
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        columns = [tokenizer.encode_lines(list(column)) for column in zip(*chunk)]
        for row, parts in enumerate(zip(*columns), start=start):
            kept = _truncated(list(parts), sequence_length - 1 - len(parts))
            truncated[row] = sum(map(len, parts)) > sum(map(len, kept))
            line = [tokenizer.cls_id]
            for part in kept:
                second[row] = len(line)
                line += [*part.tolist(), tokenizer.sep_id]
            tokens[row] = len(line)
            second[row] = second[row] if len(kept) > 1 else len(line)
            ids[row, : len(line)] = line
    return {"input_ids": ids, "tokens": tokens, "second": second, "truncated": truncated}


def _encode(examples: ExampleSet, tokenizer: Tokenizer, sequence_length: int) -> Dict[str, np.ndarray]:
    return encode_texts([one.texts for one in examples.examples], tokenizer, sequence_length)


def _problem(arrays: Dict[str, np.ndarray], count: int, vocab_size: int, length: int) -> Optional[str]:
    """The first thing that is wrong with arrays whose checksums are right, or None."""
    limits = {
        "input_ids": (0, vocab_size - 1),
        "tokens": (2, length),
        "second": (2, length),
        "truncated": (0, 1),
    }
    for name, array in arrays.items():
        shape = (count, length) if name == "input_ids" else (count,)
        if array.shape != shape or array.dtype.kind not in "iu":
            return f"{name} has shape {array.shape} and type {array.dtype}"
        least, most = limits[name]
        if array.size and not (least <= int(array.min()) and int(array.max()) <= most):
            return f"{name} has values from {array.min()} to {array.max()}, outside of {least} to {most}"
    return None


def _truncated(parts: List[np.ndarray], room: int) -> List[np.ndarray]:
    """One or two texts with `room` tokens in all: the longer one loses tokens until they are equally long."""
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = map(len, parts)
    half = room // 2  # of two long texts the first keeps the odd token
    if first + second > room and first <= room - half:
        second = room - first
    elif first + second > room:
        second = min(second, half)
        first = room - second
    return [parts[0][:first], parts[1][:second]]


class GlueDataset(SampleDataset):
    """int32 batches of input_ids, attention_mask, token_type_ids [B, S] and labels [B], float32 in a
    regression. The label of a padding row is one that the loss ignores."""

    def __init__(self, features: GlueFeatures, *, seed: int, shuffle: bool) -> None:
        super().__init__(len(features), seed=seed, shuffle=shuffle)
        self.sequence_length = int(features.input_ids.shape[1])
        self.pad_id = features.pad_id
        self._features = features

    def fetch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        features = self._features
        columns = np.arange(self.sequence_length)
        attention_mask = columns < features.tokens[indices][:, None]
        token_type_ids = attention_mask & (columns >= features.second[indices][:, None])
        inputs = (features.input_ids[indices], attention_mask, token_type_ids)
        return self._batch(inputs, features.labels[indices])

    def padding(self, rows: int) -> Batch:
        shape = (rows, self.sequence_length)
        attention_mask = np.zeros(shape)
        attention_mask[:, 0] = 1
        is_number = self._features.labels.dtype == np.float32
        labels = np.full(rows, _NO_NUMBER if is_number else IGNORED_LABEL, dtype=self._features.labels.dtype)
        return self._batch((np.full(shape, self.pad_id), attention_mask, np.zeros(shape)), labels)

    def _batch(self, inputs: Tuple[np.ndarray, ...], labels: np.ndarray) -> Batch:
        fields = [np.ascontiguousarray(field, dtype=np.int32) for field in inputs]
        return tuple(torch.from_numpy(field) for field in (*fields, np.ascontiguousarray(labels)))
