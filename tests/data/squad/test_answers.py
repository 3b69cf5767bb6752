"""Answers from logits, compared with a brute-force search over every span of every window."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from data.squad import (
    Answer,
    AnswerKeys,
    Features,
    Question,
    QuestionSet,
    WindowOptions,
    find_answers,
    make_windows,
    prediction_files,
    prepare_features,
)
from data.tokenizer import SPECIAL_TOKENS, Tokenizer

WORDS = "the a in river rises joins flows north south stone bridge old new two".split()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer([*SPECIAL_TOKENS, *WORDS, ".", ",", "##s"])


def question_set(seed: int, *, has_impossible: bool = True, count: int = 12) -> QuestionSet:
    rng = random.Random(seed)
    questions = []
    for n in range(count):
        context = "river " + "  ".join(rng.choices([*WORDS, ".", "rivers"], k=rng.randrange(3, 60)))
        asked = " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))
        answers = () if has_impossible and n % 3 == 0 else (Answer("river", 0),)
        questions.append(Question(f"q{n}", "", asked, context, answers, not answers))
    return QuestionSet("random", tuple(questions), has_impossible)


def features_of(data: QuestionSet, tokenizer: Tokenizer, folder: Path) -> Features:
    return prepare_features(data, tokenizer, WindowOptions(20, 5, 6), cache_folder=folder)


def logits(features: Features, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Whole numbers: equal scores are common.
    shape = (len(features), features.sequence_length)
    return rng.integers(-4, 5, shape).astype(np.float32), rng.integers(-4, 5, shape).astype(np.float32)


def searched(
    data: QuestionSet,
    tokenizer: Tokenizer,
    starts: np.ndarray,
    ends: np.ndarray,
    options: AnswerKeys,
) -> dict[str, tuple[list[tuple[float, str]], float]]:
    """For each question: (score, text) of every distinct text, best first, and the null score."""
    spans: dict[int, list[tuple[float, str]]] = {}
    nulls: dict[int, list[float]] = {}
    for row, window in enumerate(make_windows(data, tokenizer, WindowOptions(20, 5, 6))):
        context = data.questions[window.question].context
        nulls.setdefault(window.question, []).append(float(starts[row, 0] + ends[row, 0]))
        for first in range(20):
            for last in range(first, min(20, first + options.max_answer_length)):
                if window.is_max_context[first] and window.offsets[last, 0] >= 0:
                    text = context[window.offsets[first, 0] : window.offsets[last, 1]]
                    score = float(starts[row, first] + ends[row, last])
                    spans.setdefault(window.question, []).append((score, text))
    found = {}
    for number, question in enumerate(data.questions):
        distinct: dict[str, float] = {}
        for score, text in sorted(spans[number], key=lambda span: -span[0]):
            distinct.setdefault(text, score)
        found[question.id] = ([(score, text) for text, score in distinct.items()], min(nulls[number]))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(20, 30), (3, 2), (1, 1), (500, 4)])
def test_answers_are_those_of_an_exhaustive_search(
    tmp_path: Path, tokenizer: Tokenizer, seed: int, sizes: tuple[int, int]
) -> None:
    data = question_set(seed)
    features = features_of(data, tokenizer, tmp_path)
    starts, ends = logits(features, seed)
    options = AnswerKeys(*sizes, null_score_diff_threshold=seed - 2.0)
    expected = searched(data, tokenizer, starts, ends, options)
    answered = find_answers(data, features, starts, ends, options)
    assert [one.question for one in answered] == list(data.questions)
    for one in answered:
        spans, null = expected[one.question.id]
        ours = [(candidate.score, candidate.text) for candidate in one.candidates if candidate.text]
        assert ours == spans[: options.n_best_size]
        assert one.null_odds == null - spans[0][0]
        assert one.best_text == spans[0][1]
        assert one.text == ("" if null - spans[0][0] > options.null_score_diff_threshold else spans[0][1])
        assert all(candidate.text in one.question.context for candidate in one.candidates)
        scores = [candidate.score for candidate in one.candidates]
        assert scores == sorted(scores, reverse=True) and null in scores
        total = sum(math.exp(score) for score in scores)
        for candidate in one.candidates:
            assert candidate.probability == pytest.approx(math.exp(candidate.score) / total)


def test_one_window_that_sees_an_answer_is_enough(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The null score is the minimum over the windows, not the maximum or the last one."""
    data = question_set(1)
    features = features_of(data, tokenizer, tmp_path)
    zeros = np.zeros((len(features), 20), dtype=np.float32)
    for number in range(len(data.questions)):
        windows = np.flatnonzero(features.question == number)
        if len(windows) < 3:
            continue
        nulls = zeros.copy()
        nulls[windows, 0] = [9, -3, *[5] * (len(windows) - 2)]
        assert find_answers(data, features, nulls, zeros, AnswerKeys())[number].null_odds == -3
        break
    else:
        pytest.fail("no question has three windows")


def test_without_impossible_questions_every_question_is_answered(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    data = question_set(2, has_impossible=False)
    features = features_of(data, tokenizer, tmp_path)
    starts, ends = logits(features, 2)
    starts[:, 0] = 100
    answered = find_answers(data, features, starts, ends, AnswerKeys())
    assert all(one.text and one.null_odds is None for one in answered)
    assert all(candidate.text for one in answered for candidate in one.candidates)
    assert sorted(prediction_files(answered)) == ["nbest_predictions.json", "predictions.json"]


def test_the_first_windows_answer_the_questions_they_show(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = question_set(3)
    features = features_of(data, tokenizer, tmp_path)
    starts, ends = logits(features, 3)
    whole = find_answers(data, features, starts, ends, AnswerKeys())
    last = int(np.flatnonzero(features.question == 4)[-1])
    assert find_answers(data, features, starts[: last + 1], ends[: last + 1], AnswerKeys()) == whole[:5]
    cut = find_answers(data, features, starts[: last + 2], ends[: last + 2], AnswerKeys())
    assert cut[:5] == whole[:5] and [one.question.id for one in cut[5:]] == ["q5"]


def test_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = question_set(4)
    features = features_of(data, tokenizer, tmp_path)
    answered = find_answers(data, features, *logits(features, 4), AnswerKeys(n_best_size=4))
    files = prediction_files(answered)
    ids = [question.id for question in data.questions]
    assert sorted(files) == ["nbest_predictions.json", "null_odds.json", "predictions.json"]
    assert all(list(content) == ids for content in files.values())
    for one in answered:
        best = files["nbest_predictions.json"][one.question.id]
        assert len(best) == 5 and sum(entry["probability"] for entry in best) == pytest.approx(1)
        assert set(best[0]) == {"text", "probability", "start_logit", "end_logit"}
        assert files["predictions.json"][one.question.id] == one.text
        assert files["null_odds.json"][one.question.id] == one.null_odds
