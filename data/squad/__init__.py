"""SQuAD: questions, windows over contexts, answers from logits, and their scores."""

from __future__ import annotations

from data.squad.files import Answer, Question, QuestionSet, read_json, read_questions
from data.squad.metrics import (
    QuestionScore,
    best_thresholds,
    evaluate,
    exact_score,
    f1_score,
    normalize_answer,
    score_questions,
)
from data.squad.windows import Window, WindowOptions, make_windows

__all__ = [
    "Answer",
    "Question",
    "QuestionScore",
    "QuestionSet",
    "Window",
    "WindowOptions",
    "best_thresholds",
    "evaluate",
    "exact_score",
    "f1_score",
    "make_windows",
    "normalize_answer",
    "read_json",
    "read_questions",
    "score_questions",
]
