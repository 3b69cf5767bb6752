"""Scores, compared with published figures for real predictions, torchmetrics, and brute force."""

from __future__ import annotations

import random

import pytest

from data.files import DataError
from data.squad import (
    Answer,
    Question,
    QuestionSet,
    best_thresholds,
    evaluate,
    exact_score,
    f1_score,
    normalize_answer,
    read_json,
    read_questions,
)

from .squad_files import real

# exact and F1 as ../shared/data/README.md has them for these predictions
KNOWN = [
    ("dev-v1.1", "v1.1-bert-ensemble", 86.2062, 92.1956),
    ("dev-v1.1", "v1.1-match-lstm-ensemble", 67.6348, 76.7556),
    ("dev-v1.1", "v1.1-slqa-plus-ensemble", 81.9489, 88.3839),
    ("dev-v2.0", "v2.0-bert-single", 78.7417, 81.7753),
    ("dev-v2.0", "v2.0-bidaf-selfatt-elmo-single", 65.7037, 67.8765),
]

WORDS = ["the", "a", "An", "river", "River,", "Arve", "24–10", "(Rhône)", "...", "U.S.", "us", "rises"]


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(5)))


def _questions(rng: random.Random, count: int, *, has_impossible: bool) -> QuestionSet:
    questions = []
    for n in range(count):
        impossible = has_impossible and rng.random() < 0.5
        answers = () if impossible else tuple(Answer(_text(rng), None) for _ in range(rng.randrange(1, 4)))
        questions.append(Question(f"q{n}", "", "", "", answers, impossible))
    return QuestionSet("random", tuple(questions), has_impossible)


@pytest.mark.parametrize(("data", "predictions", "exact", "f1"), KNOWN)
def test_the_known_figures_of_real_predictions(data: str, predictions: str, exact: float, f1: float) -> None:
    questions = read_questions(real(f"{data}.json.gz"), answers="texts")
    result = evaluate(questions, read_json(real(f"predictions/{predictions}.json.gz")))
    assert (round(result["exact"], 4), round(result["f1"], 4)) == (exact, f1)
    assert result["total"] == len(questions.questions)
    if questions.has_impossible:
        parts = [(result[f"{group}_total"], result[f"{group}_f1"]) for group in ("HasAns", "NoAns")]
        assert sum(total for total, _ in parts) == result["total"]
        assert sum(total * mean for total, mean in parts) / result["total"] == pytest.approx(result["f1"])


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_on_random_cases(seed: int) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.text")
    rng = random.Random(seed)
    data = _questions(rng, 100, has_impossible=False)
    predictions = {question.id: _text(rng) for question in data.questions}
    expected = torchmetrics.squad(
        [{"id": id_, "prediction_text": text} for id_, text in predictions.items()],
        [
            {
                "id": q.id,
                "answers": {"text": [a.text for a in q.answers], "answer_start": [0] * len(q.answers)},
            }
            for q in data.questions
        ],
    )
    result = evaluate(data, predictions)
    assert result["exact"] == pytest.approx(float(expected["exact_match"]), rel=1e-6)
    assert result["f1"] == pytest.approx(float(expected["f1"]), rel=1e-6)


def test_normalisation() -> None:
    assert normalize_answer("  The Theatre's  a-la-carte, AN\tend. ") == "theatres alacarte end"
    assert normalize_answer("24–10") == "24–10"  # only ASCII punctuation goes


def test_words_count_as_often_as_they_occur() -> None:
    # 2 of 3 predicted words and 2 of 2 expected: 2 * (2/3) / (2/3 + 1)
    assert f1_score("new new york", "New York") == pytest.approx(0.8)
    assert exact_score("new new york", "New York") == 0


def test_nothing_left_matches_nothing_left_alone() -> None:
    assert f1_score("the", "A.") == exact_score("the", "A.") == 1
    assert f1_score("", "river") == f1_score("river", "") == 0


def _data(*questions: Question, has_impossible: bool = True) -> QuestionSet:
    return QuestionSet("small", questions, has_impossible)


POSSIBLE = Question("yes", "", "", "", (Answer("Savoy", None), Answer("in Savoy", None)))
IMPOSSIBLE = Question("no", "", "", "", (), True)


def test_a_question_without_a_prediction_scores_0() -> None:
    result = evaluate(_data(POSSIBLE, IMPOSSIBLE), {"another": "Savoy"})
    assert (result["exact"], result["f1"], result["total"]) == (0, 0, 2)
    assert result["NoAns_exact"] == 0


def test_the_split_by_whether_there_is_an_answer() -> None:
    result = evaluate(_data(POSSIBLE, IMPOSSIBLE), {"yes": "of upper Savoy", "no": ""})
    assert result == {
        "exact": 50,
        "f1": 75,
        "total": 2,
        "HasAns_exact": 0,
        "HasAns_f1": 50,
        "HasAns_total": 1,
        "NoAns_exact": 100,
        "NoAns_f1": 100,
        "NoAns_total": 1,
    }


def test_version_1_has_no_split_and_an_empty_group_no_mean() -> None:
    assert set(evaluate(_data(POSSIBLE, has_impossible=False), {})) == {"exact", "f1", "total"}
    assert evaluate(_data(POSSIBLE), {})["NoAns_f1"] is None


def test_in_version_2_an_answer_of_an_article_alone_is_none() -> None:
    question = Question("q", "", "", "", (Answer("the", None), Answer("river", None)))
    assert evaluate(_data(question), {"q": ""})["exact"] == 0
    assert evaluate(_data(question, has_impossible=False), {"q": ""})["exact"] == 100


def test_a_prediction_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"'yes' is None, not a text"):
        evaluate(_data(POSSIBLE), {"yes": None})  # type: ignore[dict-item]


@pytest.mark.parametrize("seed", range(6))
def test_best_thresholds_are_the_best_of_all(seed: int) -> None:
    rng = random.Random(seed)
    data = _questions(rng, 40, has_impossible=True)
    predictions = {q.id: _text(rng) for q in data.questions}
    odds = {q.id: float(rng.randrange(-8, 9)) for q in data.questions}  # with many ties

    def at(threshold: float) -> dict[str, float]:
        return evaluate(data, {id_: "" if odds[id_] > threshold else t for id_, t in predictions.items()})

    best = best_thresholds(data, predictions, odds)
    every = [at(threshold) for threshold in (-100.0, *odds.values())]
    for name in ("exact", "f1"):
        assert best[f"best_{name}"] == pytest.approx(max(result[name] for result in every))
        assert at(best[f"best_{name}_thresh"])[name] == pytest.approx(best[f"best_{name}"])


def test_where_no_text_is_right_the_threshold_answers_none() -> None:
    best = best_thresholds(_data(IMPOSSIBLE), {"no": "Savoy"}, {"no": -3.0})
    assert best["best_f1"] == 100
    assert best["best_f1_thresh"] < -3


def test_missing_null_odds_are_named() -> None:
    with pytest.raises(DataError, match=r"1 of 2 questions have no null odds.*'no'"):
        best_thresholds(_data(POSSIBLE, IMPOSSIBLE), {}, {"yes": 1.0})
