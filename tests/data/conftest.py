"""Real text for the data tests: the topics of `help()`, which every Python has."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path
from typing import List

import pytest

from data.corpora import Corpus, open_corpus
from data.tokenizer import Tokenizer, train_tokenizer


def topic_documents() -> List[str]:
    """About eighty documents of English prose and code, 0.5 MB, with whitespace normalised as in a corpus."""
    texts = (text.split("\n") for _, text in sorted(pydoc_data.topics.topics.items()))
    return ["\n".join(" ".join(line.split()) for line in lines if line.strip()) for lines in texts]


def write_text_corpus(path: Path, documents: List[str]) -> Corpus:
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return open_corpus(str(path))


@pytest.fixture(scope="session")
def documents() -> List[str]:
    return topic_documents()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: List[str]) -> Corpus:
    return write_text_corpus(tmp_path_factory.mktemp("corpus") / "topics.txt", documents)


@pytest.fixture(scope="session")
def tokenizer(corpus: Corpus) -> Tokenizer:
    return train_tokenizer(corpus, 1000)
