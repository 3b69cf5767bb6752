"""Prepares a run's questions and their windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ipu.keys import REQUIRED

from ..keys import DataKeys, ExampleKeys
from ..tokenizer import Tokenizer
from .files import PUBLISHED, QuestionSet, open_questions
from .windows import Features, WindowOptions, prepare_features


@dataclass(frozen=True)
class SquadDataOptions(ExampleKeys, DataKeys):
    """The configuration's keys that affect questions, vocabulary and windows.

    train_data, validation_data: see open_questions; None for the published set of squad_version. tokenizer:
    "checkpoint" for the one saved with the initial weights, otherwise see load_tokenizer.
    """

    vocab_size: int = REQUIRED


@dataclass(frozen=True)
class PreparedQuestions:
    """Questions and their windows."""

    questions: QuestionSet
    features: Features

    def __str__(self) -> str:
        kinds = ""
        if self.questions.has_impossible:
            impossible = sum(question.is_impossible for question in self.questions.questions)
            kinds = f" ({impossible:,} without an answer)"
        count = len(self.questions.questions)
        left_out = self.questions.left_out
        without = (
            f"; {len(left_out):,} more left out, whose answers aren't where they should be, the first: "
            f"{left_out[0]}"
            if left_out
            else ""
        )
        return f"{self.questions.name}: {count:,} questions{kinds}, {len(self.features):,} windows{without}"


def read_split(options: SquadDataOptions, split: str) -> QuestionSet:
    """The questions of "train" or "validation". Raises DataError."""
    named = options.train_data if split == "train" else options.validation_data
    source = PUBLISHED[options.squad_version] if named is None else named
    return open_questions(source, split, version=options.squad_version, subset=options.corpus_subset)


def prepare_questions(
    questions: QuestionSet,
    tokenizer: Tokenizer,
    options: SquadDataOptions,
    *,
    cache_folder: Path,
    progress: bool = False,
) -> PreparedQuestions:
    """The questions with their windows, from the cache if possible. Raises DataError."""
    lengths = WindowOptions(options.sequence_length, options.doc_stride, options.max_query_length)
    features = prepare_features(questions, tokenizer, lengths, cache_folder=cache_folder, progress=progress)
    return PreparedQuestions(questions, features)
