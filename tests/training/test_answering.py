"""Gathering an evaluation's outputs: padding changes neither the loss nor the scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data.squad import (
    Answer,
    AnswerKeys,
    PreparedQuestions,
    Question,
    QuestionSet,
    WindowOptions,
    evaluate,
    prepare_features,
)
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from training.answering import Answering
from training.errors import DivergenceError

LENGTHS = WindowOptions(16, 4, 4)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedQuestions:
    words = "river joins the north stone bridge".split()
    contexts = [
        " ".join(words[n % 6] for n in range(first, first + length)) for first, length in ((0, 5), (1, 23))
    ]
    questions = tuple(
        Question(
            f"q{n}", "", "the bridge", contexts[n % 2], (Answer(contexts[n % 2][:5], 0),) * (n < 4), n >= 4
        )
        for n in range(5)
    )
    data = QuestionSet("small", questions, True)
    features = prepare_features(data, Tokenizer([*SPECIAL_TOKENS, *words]), LENGTHS, cache_folder=tmp_path)
    return PreparedQuestions(data, features)


def outputs(
    prepared: PreparedQuestions, rows: int, micro_batch: int, filling: float
) -> list[list[torch.Tensor]]:
    """Calls of two micro batches: the loss of a micro batch is the mean of its windows' numbers."""
    rng = np.random.default_rng(0)
    count = len(prepared.features)
    padded = -(-count // rows) * rows
    logits = [torch.full((padded, LENGTHS.max_seq_length), filling) for _ in range(2)]
    for tensor in logits:
        tensor[:count] = torch.from_numpy(rng.standard_normal((count, LENGTHS.max_seq_length)))
    losses = [
        sum(range(first, min(first + micro_batch, count))) / max(1, min(micro_batch, count - first))
        for first in range(0, padded, micro_batch)
    ]
    calls = []
    for first in range(0, padded, rows):
        part = losses[first // micro_batch : (first + rows) // micro_batch]
        calls.append([torch.tensor(part), *(tensor[first : first + rows] for tensor in logits)])
    return calls


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 50])
def test_loss_and_scores_are_means_over_real_windows(prepared: PreparedQuestions, micro_batch: int) -> None:
    found = []
    for filling in (0.0, 1e9):
        answering = Answering(prepared, AnswerKeys())
        for call in outputs(prepared, 2 * micro_batch, micro_batch, filling):
            answering.add(call)
        found.append((answering.result(), answering.answered))
        assert answering.is_whole
    assert found[0] == found[1]
    record, answered = found[0]
    count = len(prepared.features)
    assert record["eval_loss"] == pytest.approx((count - 1) / 2)
    scores = evaluate(prepared.questions, {one.question.id: one.text for one in answered})
    assert {key: record[f"eval_{key}"] for key in scores} == scores
    assert record["eval_best_f1"] >= record["eval_f1"]


def test_a_limited_evaluation_says_so(prepared: PreparedQuestions) -> None:
    answering = Answering(prepared, AnswerKeys())
    answering.add(outputs(prepared, 4, 2, 0.0)[0])
    record = answering.result()
    assert not answering.is_whole and record["eval_total"] < len(prepared.questions.questions)
    assert math.isnan(record["eval_NoAns_f1"])
    assert record["eval_loss"] == pytest.approx(1.5)


def test_unusable_logits_are_an_error(prepared: PreparedQuestions) -> None:
    answering = Answering(prepared, AnswerKeys())
    (call,) = outputs(prepared, 100, 50, 0.0)
    call[2][1, 3] = math.nan
    answering.add(call)
    with pytest.raises(DivergenceError, match="NaN or infinite"):
        answering.result()
