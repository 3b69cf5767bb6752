"""SQuAD: questions, windows over contexts, answers from logits, and their scores."""

from __future__ import annotations

from data.squad.files import Answer, Question, QuestionSet, read_json, read_questions

__all__ = ["Answer", "Question", "QuestionSet", "read_json", "read_questions"]
