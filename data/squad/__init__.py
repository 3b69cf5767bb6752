"""SQuAD: questions, windows over contexts, answers from logits, scores."""

from __future__ import annotations

from ..json_files import read_json
from ..keys import AnswerKeys
from ..tokenizer import fine_tuning_tokenizer as squad_tokenizer
from .answers import Answered, Candidate, find_answers, prediction_files
from .files import PUBLISHED, Answer, Question, QuestionSet, open_questions, read_questions
from .prepare import (
    PreparedQuestions,
    SquadDataOptions,
    prepare_questions,
    read_split,
)
from .scores import (
    QuestionScore,
    best_thresholds,
    evaluate,
    exact_score,
    f1_score,
    normalize_answer,
    score_questions,
)
from .windows import Features, SquadDataset, Window, WindowOptions, make_windows, prepare_features

__all__ = [
    "PUBLISHED",
    "Answer",
    "AnswerKeys",
    "Answered",
    "Candidate",
    "Features",
    "PreparedQuestions",
    "Question",
    "QuestionScore",
    "QuestionSet",
    "SquadDataOptions",
    "SquadDataset",
    "Window",
    "WindowOptions",
    "best_thresholds",
    "evaluate",
    "exact_score",
    "f1_score",
    "find_answers",
    "make_windows",
    "normalize_answer",
    "open_questions",
    "prediction_files",
    "prepare_features",
    "prepare_questions",
    "read_json",
    "read_questions",
    "read_split",
    "score_questions",
    "squad_tokenizer",
]
