"""Texts as BERT's inputs, against transformers' tokeniser and BERT's own truncation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from data.glue import Example, ExampleSet, GlueDataset, encode_texts, prepare_examples
from data.glue.demo import make
from data.tokenizer import SPECIAL_TOKENS, Tokenizer

LETTERS = "abcdefghij"
TOKENIZER = Tokenizer([*SPECIAL_TOKENS, *LETTERS])
PAIRS = [("a b c", "d"), ("a", "b c d e f"), ("a b c d e", "f g h i j"), ("a b c d e f", "g h"), ("", "a")]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("length", [9, 11, 16])  # theirs gives the odd token of 8 and 10 to the second text
def test_as_transformers_encodes(count: int, length: int, tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [pair[:count] for pair in PAIRS]
    expected = theirs(
        *map(list, zip(*texts)), max_length=length, truncation=True, padding="max_length", return_tensors="np"
    )
    arrays = encode_texts(texts, TOKENIZER, length)
    assert np.array_equal(arrays["input_ids"], expected["input_ids"])
    columns = np.arange(length)
    assert np.array_equal(columns < arrays["tokens"][:, None], expected["attention_mask"])
    second = (columns >= arrays["second"][:, None]) & (columns < arrays["tokens"][:, None])
    assert np.array_equal(second, expected["token_type_ids"])


def berts_truncation(first: int, second: int, room: int) -> tuple:
    """create_pretraining_data.py: one token at a time, from the longer text."""
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


def test_truncation_is_berts() -> None:
    for room in range(2, 9):
        for first in range(10):
            for second in range(10):
                pair = (" ".join("a" * first), " ".join("b" * second))
                ids = encode_texts([pair], TOKENIZER, room + 3)["input_ids"][0].tolist()
                a, b = (ids.count(TOKENIZER.vocabulary.index(letter)) for letter in "ab")
                assert (a, b) == berts_truncation(first, second, room)


def example_set(classes: tuple, *labels: object) -> ExampleSet:
    return ExampleSet(
        "own", tuple(Example(str(n), (f"a {n}",), label) for n, label in enumerate(labels)), classes
    )


def test_labels_are_the_models(tmp_path: Path) -> None:
    def features(examples: ExampleSet, classes: tuple = ()) -> object:
        return prepare_examples(
            examples, TOKENIZER, sequence_length=8, cache_folder=tmp_path, classes=classes
        ).features

    words = example_set(("no", "yes"), "yes", "no", None)
    assert features(words).labels.tolist() == [1, 0, -100]
    other = features(words, ("YES", "NO"))
    assert other.labels.tolist() == [0, 1, -100]
    assert other.identity != features(words).identity  # a run of one doesn't resume as the other
    cased = example_set(("Yes", "yes"), "yes", "Yes")
    assert features(cased).labels.tolist() == [1, 0]
    numbers = features(example_set((), 1.5, None))
    assert numbers.labels.dtype == np.float32 and numbers.labels[0] == 1.5

    for prepared in (words, example_set((), 0.5, 2.5)):
        dataset = GlueDataset(features(prepared), seed=1, shuffle=False)
        rows, padding = dataset[0], dataset.padding(3)
        assert [field.dtype for field in rows] == [field.dtype for field in padding]
        from model.heads import mean_cross_entropy, mean_squared_error

        loss = mean_squared_error if padding[3].dtype == torch.float32 else mean_cross_entropy
        scores = torch.ones(3) if padding[3].dtype == torch.float32 else torch.ones(3, 2)
        assert float(loss(scores, padding[3])) == 0


def test_the_demo_is_what_its_program_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    make.main()
    folder = Path(make.__file__).parent
    for split in make.PAIRS:
        assert (tmp_path / f"{split}.tsv").read_bytes() == (folder / f"{split}.tsv").read_bytes()
    questions = [
        {line.split("\t")[1] for line in (folder / f"{split}.tsv").read_text().splitlines()[1:]}
        for split in ("train", "dev")
    ]
    assert not questions[0] & questions[1]
