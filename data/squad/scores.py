"""Exact match and F1 of SQuAD 1.1 and 2.0, by the definition of the official evaluation scripts."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ..files import DataError
from .files import Question, QuestionSet

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_score(prediction: str, answer: str) -> float:
    """1.0 if the two are equal after normalisation, otherwise 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1_score(prediction: str, answer: str) -> float:
    """The harmonic mean of precision and recall over normalised words, in 0..1.

    If either has no words, 1.0 if both have none and otherwise 0.0: version 2.0's rule, and torchmetrics'.
    (Version 1.1's script gives 0.0 for two empty ones, though it counts them as an exact match.)
    """
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class QuestionScore:
    """One question's scores, both in 0..1."""

    exact: float
    f1: float


def score_question(question: Question, prediction: str, *, has_impossible: bool) -> QuestionScore:
    """The best score over the question's answers; in version 2.0 the answer of an impossible one is ""."""
    answers = [answer.text for answer in question.answers]
    if has_impossible:  # its script ignores answers that consist only of articles and punctuation
        answers = [text for text in answers if normalize_answer(text)] or [""]
    return QuestionScore(
        max(exact_score(prediction, text) for text in answers),
        max(f1_score(prediction, text) for text in answers),
    )


def score_questions(data: QuestionSet, predictions: Mapping[str, str]) -> Dict[str, QuestionScore]:
    """Scores by question id. A question without a prediction scores 0, even an impossible one.

    Raises DataError for a prediction that isn't a string.
    """
    scores = {}
    for question in data.questions:
        prediction = predictions.get(question.id)
        if prediction is None and question.id not in predictions:
            scores[question.id] = QuestionScore(0.0, 0.0)
        elif isinstance(prediction, str):
            scores[question.id] = score_question(question, prediction, has_impossible=data.has_impossible)
        else:
            raise DataError(
                f"the prediction for question {question.id!r} is {prediction!r}, not a text. Predictions are "
                '{"question id": "answer"}, with "" for no answer.'
            )
    return scores


def evaluate(data: QuestionSet, predictions: Mapping[str, str]) -> Dict[str, Any]:
    """exact and f1 in percent, and total; for version 2.0 also HasAns_... and NoAns_... (exact, f1, total).

    A group without questions has the value None.
    """
    scores = score_questions(data, predictions)
    result = _means("", list(scores.values()))
    if data.has_impossible:
        for prefix, impossible in (("HasAns_", False), ("NoAns_", True)):
            ids = [q.id for q in data.questions if q.is_impossible == impossible]
            result.update(_means(prefix, [scores[id_] for id_ in ids]))
    return result


def _means(prefix: str, scores: Sequence[QuestionScore]) -> Dict[str, Any]:
    total = len(scores)
    return {
        f"{prefix}exact": 100 * sum(score.exact for score in scores) / total if total else None,
        f"{prefix}f1": 100 * sum(score.f1 for score in scores) / total if total else None,
        f"{prefix}total": total,
    }


def best_thresholds(
    data: QuestionSet, predictions: Mapping[str, str], null_odds: Mapping[str, float]
) -> Dict[str, float]:
    """best_exact, best_exact_thresh, best_f1, best_f1_thresh of version 2.0.

    "" is the answer if a question's null odds exceed the threshold, otherwise its prediction, which should be
    the best text. The scores are the highest, in percent, that a single threshold reaches; of several such
    thresholds the lowest is returned. Questions with equal odds are on the same side: the official script
    counts part of such a group, which no threshold does. Raises DataError for missing null odds.
    """
    missing = [q.id for q in data.questions if q.id not in null_odds]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(data.questions)} questions have no null odds, {missing[0]!r} first: "
            "a threshold needs them all. Give the null_odds.json that was written with the predictions."
        )
    scores = score_questions(data, predictions)
    # Per question: its null odds, its score if its text is the answer, and its score if "" is.
    rows = []
    for question in data.questions:
        null = score_question(question, "", has_impossible=data.has_impossible)
        rows.append((float(null_odds[question.id]), scores[question.id], null))
    rows.sort(key=lambda row: row[0])
    exact, exact_threshold = _best([(odds, text.exact, null.exact) for odds, text, null in rows])
    f1, f1_threshold = _best([(odds, text.f1, null.f1) for odds, text, null in rows])
    return {
        "best_exact": exact,
        "best_exact_thresh": exact_threshold,
        "best_f1": f1,
        "best_f1_thresh": f1_threshold,
    }


def _best(rows: List[Tuple[float, float, float]]) -> Tuple[float, float]:
    """The best mean in percent and its threshold; `rows` are (odds, score of the text, of ""), by odds."""
    current = best = sum(null for _, _, null in rows)
    # A threshold below all odds answers "" everywhere; it is 0, as in the official script, if that is below.
    threshold = 0.0 if rows[0][0] > 0 else rows[0][0] - 1.0
    for i, (odds, text, null) in enumerate(rows):
        current += text - null
        if (i + 1 == len(rows) or rows[i + 1][0] != odds) and current > best:
            best, threshold = current, odds
    return 100 * best / len(rows), threshold
