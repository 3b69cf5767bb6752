"""From logits to answers: the best spans of each question over all of its windows.

A span starts at a context token for which its window has the most context (`is_max_context`), ends in the
same window, and has at most `max_answer_length` tokens; its score is the sum of its start and end logits, as
in BERT. All such spans are compared (BERT's programs consider only the n best starts and ends). An answer is
a substring of the context; of spans with equal text the best counts. Ties go to the earlier window, then to
the earlier start, then to the earlier end.

The null score is the sum of [CLS]'s logits, minimised over the windows: one window with an answer is enough.
Null odds are the null score minus the best span's. If a set has impossible questions, the answer is "" when
the null odds exceed `null_score_diff_threshold`, and "" is among the n best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, List, Optional, Tuple

import numpy as np

from ..keys import AnswerKeys
from .files import Question, QuestionSet
from .windows import CLS_POSITION, Features


@dataclass(frozen=True)
class Candidate:
    """A possible answer; "" means no answer. `probability` is relative to the other candidates."""

    text: str
    start_logit: float
    end_logit: float
    probability: float = 0.0

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Answered:
    """A question with its candidates, best first. `text` is the answer, `best_text` the best non-empty one.
    `null_odds` is None if the set has no impossible questions."""

    question: Question
    text: str
    best_text: str
    candidates: Tuple[Candidate, ...]
    null_odds: Optional[float]


def find_answers(
    data: QuestionSet,
    features: Features,
    start_logits_ns: np.ndarray,
    end_logits_ns: np.ndarray,
    options: AnswerKeys,
) -> List[Answered]:
    """Answers the questions of the first n windows, in order; logits are finite floats [n, S].

    The windows are the first n of `features`, which may end within the last question's.
    """
    rows = len(start_logits_ns)
    numbers, firsts = np.unique(features.question[:rows], return_index=True)
    starts, ends = start_logits_ns.astype(np.float64), end_logits_ns.astype(np.float64)
    answered = []
    for number, first, after in zip(numbers.tolist(), firsts.tolist(), [*firsts[1:].tolist(), rows]):
        question, windows = data.questions[number], range(first, after)
        candidates = _best_spans(question, features, starts, ends, windows, options)
        best = candidates[0]
        text, null_odds = best.text, None
        if data.has_impossible:
            nulls = [Candidate("", starts[w, CLS_POSITION], ends[w, CLS_POSITION]) for w in windows]
            null = min(nulls, key=lambda candidate: candidate.score)
            null_odds = null.score - best.score
            if null_odds > options.null_score_diff_threshold:
                text = ""
            candidates = sorted([*candidates, null], key=lambda candidate: -candidate.score)
        answered.append(Answered(question, text, best.text, _with_probabilities(candidates), null_odds))
    return answered


def _best_spans(
    question: Question,
    features: Features,
    starts_ns: np.ndarray,
    ends_ns: np.ndarray,
    windows: Iterable[int],
    options: AnswerKeys,
) -> List[Candidate]:
    """The n best spans with different texts, best first; at least one."""
    spans = [_spans_of(features, starts_ns[w], ends_ns[w], w, options.max_answer_length) for w in windows]
    scores = np.concatenate([score for score, _ in spans])
    places = np.concatenate([place for _, place in spans])  # [spans, 3]: window, first token, last token
    best: Dict[str, Candidate] = {}
    looked_at = options.n_best_size
    while True:
        for window, first, last in places[_largest(scores, looked_at)].tolist():
            start, end = features.offsets[window, first, 0], features.offsets[window, last, 1]
            text = question.context[start:end]
            if len(best) < options.n_best_size and text not in best:
                best[text] = Candidate(text, float(starts_ns[window, first]), float(ends_ns[window, last]))
        if len(best) == options.n_best_size or looked_at >= len(scores):
            return list(best.values())
        looked_at *= 4  # there were duplicate texts


def _spans_of(
    features: Features, start_s: np.ndarray, end_s: np.ndarray, window: int, max_answer_length: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Scores [spans] of one window's spans and their (window, first token, last token) [spans, 3]."""
    first = np.flatnonzero(features.is_max_context[window])
    # The last [SEP] comes after the context.
    room = np.minimum(features.tokens[window] - 1 - first, max_answer_length)
    lengths = np.arange(max_answer_length)
    which, length = np.nonzero(lengths < room[:, None])
    first = first[which]
    last = first + length
    return start_s[first] + end_s[last], np.stack([np.full_like(first, window), first, last], axis=1)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest, with ties of the smallest of them; largest and earliest first."""
    if count < len(scores):
        kept = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    else:
        kept = np.arange(len(scores))
    return kept[np.argsort(-scores[kept], kind="stable")]


def _with_probabilities(candidates: List[Candidate]) -> Tuple[Candidate, ...]:
    scores = np.array([candidate.score for candidate in candidates])
    weights = np.exp(scores - scores.max())
    shares = (weights / weights.sum()).tolist()
    return tuple(replace(candidate, probability=share) for candidate, share in zip(candidates, shares))


def prediction_files(answered: List[Answered]) -> Dict[str, Dict[str, Any]]:
    """Contents of predictions.json, nbest_predictions.json and, with impossible questions, null_odds.json."""
    files: Dict[str, Dict[str, Any]] = {
        "predictions.json": {one.question.id: one.text for one in answered},
        "nbest_predictions.json": {
            one.question.id: [
                {
                    "text": candidate.text,
                    "probability": candidate.probability,
                    "start_logit": candidate.start_logit,
                    "end_logit": candidate.end_logit,
                }
                for candidate in one.candidates
            ]
            for one in answered
        },
    }
    if any(one.null_odds is not None for one in answered):
        files["null_odds.json"] = {one.question.id: one.null_odds for one in answered}
    return files
