"""Windows: coverage, answer positions, and a comparison with a plain implementation of BERT's rules."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from data.files import DataError
from data.squad import Answer, Question, QuestionSet, Window, WindowOptions, make_windows, read_questions
from data.squad.windows import context_spans, max_context_owners
from data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer

from .squad_files import SHARED, real

CHARACTERS = "abcdeghinorstuv0123456789.,-'éÉßñ王한  \u0301\u200b\t\n"
OPTIONS = [(16, 4, 5), (24, 30, 8), (65, 16, 7), (12, 1, 4)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    letters = "abcdeghinorstuv0123456789.,-'王"
    pieces = ["in", "the", "##er", "##on", "st"]
    return Tokenizer([*SPECIAL_TOKENS, *letters, *("##" + c for c in letters), *pieces])


def _questions(seed: int, count: int = 25) -> QuestionSet:
    rng = random.Random(seed)
    questions = []
    for n in range(count):
        context = "in" + "".join(rng.choices(CHARACTERS, k=rng.randrange(1, 150)))
        start = rng.randrange(len(context))
        text = context[start : start + rng.randrange(1, 12)]
        words = "".join(rng.choices(CHARACTERS, k=rng.randrange(20)))
        answers = (Answer(text, start),) if n % 5 else ()
        questions.append(Question(f"q{n}", "", words, context, answers, not answers))
    return QuestionSet("random", tuple(questions), True)


def _by_question(data: QuestionSet, tokenizer: Tokenizer, options: WindowOptions) -> list[list[Window]]:
    groups: dict[int, list[Window]] = defaultdict(list)
    for window in make_windows(data, tokenizer, options):
        groups[window.question].append(window)
    assert list(groups) == list(range(len(data.questions)))
    return list(groups.values())


@pytest.mark.parametrize("lengths", OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_a_window_is_cls_question_sep_context_sep(
    tokenizer: Tokenizer, lengths: tuple[int, int, int], seed: int
) -> None:
    data, options = _questions(seed), WindowOptions(*lengths)
    for question, windows in zip(data.questions, _by_question(data, tokenizer, options), strict=True):
        (query,) = tokenizer.encode_lines([question.question])
        query = query[: options.max_query_length]
        ids, offsets = tokenizer.encode_with_offsets(question.context)
        for window in windows:
            shown = np.flatnonzero(window.offsets[:, 0] >= 0)
            first, last = shown[0], shown[-1]
            assert len(shown) == last - first + 1
            head = [tokenizer.cls_id, *query, tokenizer.sep_id]
            body = window.input_ids[shown]
            rest = options.max_seq_length - len(head) - len(body) - 1
            expected = [*head, *body, tokenizer.sep_id, *[tokenizer.pad_id] * rest]
            assert window.input_ids.tolist() == expected
            assert window.attention_mask.tolist() == [1] * (options.max_seq_length - rest) + [0] * rest
            types = [0] * len(head) + [1] * (len(body) + 1) + [0] * rest
            assert window.token_type_ids.tolist() == types
            place = next(i for i in range(len(ids)) if np.array_equal(offsets[i], window.offsets[first]))
            assert np.array_equal(body, ids[place : place + len(body)])
            assert np.array_equal(window.offsets[shown], offsets[place : place + len(body)])


@pytest.mark.parametrize("lengths", OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_every_token_has_one_best_window(
    tokenizer: Tokenizer, lengths: tuple[int, int, int], seed: int
) -> None:
    data = _questions(seed)
    for question, windows in zip(
        data.questions, _by_question(data, tokenizer, WindowOptions(*lengths)), strict=True
    ):
        _, offsets = tokenizer.encode_with_offsets(question.context)
        best = [tuple(o) for w in windows for o in w.offsets[w.is_max_context].tolist()]
        assert sorted(best) == sorted(tuple(o) for o in offsets.tolist())


@pytest.mark.parametrize("lengths", OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_an_answers_characters_are_in_its_tokens(
    tokenizer: Tokenizer, lengths: tuple[int, int, int], seed: int
) -> None:
    data = _questions(seed)
    for question, windows in zip(
        data.questions, _by_question(data, tokenizer, WindowOptions(*lengths)), strict=True
    ):
        _, offsets = tokenizer.encode_with_offsets(question.context)
        touched = []
        if question.answers:
            start = question.answers[0].start or 0
            end = start + len(question.answers[0].text)
            touched = [(a, b) for a, b in offsets.tolist() if a < end and b > start]
        for window in windows:
            shown = {tuple(o) for o in window.offsets.tolist()}
            if touched and shown.issuperset(touched):
                span = window.offsets[window.start_position : window.end_position + 1].tolist()
                assert [tuple(o) for o in span] == touched
            else:
                assert (window.start_position, window.end_position) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_window_is_berts(seed: int) -> None:
    rng = random.Random(seed)
    options = WindowOptions(rng.randrange(12, 40), rng.randrange(1, 40), 8)
    tokens = rng.randrange(1, 150)
    spans = context_spans(tokens, rng.randrange(9), options)
    owners = max_context_owners(tokens, spans)
    for token in range(tokens):
        scores = [
            min(token - start, end - 1 - token) + 0.01 * (end - start) if start <= token < end else -1
            for start, end in spans
        ]
        assert max(scores) >= 0, "in no window"
        assert owners[token] == scores.index(max(scores))


def test_the_stride_is_between_starts_of_windows() -> None:
    assert context_spans(20, 2, WindowOptions(13, 3, 2)) == [(0, 8), (3, 11), (6, 14), (9, 17), (12, 20)]
    assert context_spans(20, 2, WindowOptions(13, 99, 2)) == [(0, 8), (8, 16), (16, 20)]


@pytest.mark.parametrize(
    ("lengths", "words"), [((66, 8, 63), "raise the former by 1"), ((64, 0, 8), "doc_stride is 0")]
)
def test_lengths_that_leave_no_room(lengths: tuple[int, int, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        WindowOptions(*lengths)


def test_a_blank_context_is_named(tokenizer: Tokenizer) -> None:
    data = QuestionSet("blank", (Question("q7", "", "who", " \n"),), False)
    with pytest.raises(DataError, match=r"'q7'.*no token"):
        list(make_windows(data, tokenizer, WindowOptions()))


def test_real_answers_are_recovered() -> None:
    data = read_questions(real("dev-v1.1.json.gz"))
    some = QuestionSet(data.name, data.questions[::20], False)
    bert = load_tokenizer(str(SHARED / "vocab" / "bert-base-uncased-vocab.txt"))
    recovered = 0
    for question, windows in zip(
        some.questions, _by_question(some, bert, WindowOptions(128, 32, 24)), strict=True
    ):
        spans = [
            question.context[w.offsets[w.start_position, 0] : w.offsets[w.end_position, 1]]
            for w in windows
            if w.start_position
        ]
        assert spans, question.id
        assert all(question.answers[0].text.strip() in span for span in spans)
        recovered += question.answers[0].text == spans[0]
    assert recovered > 0.98 * len(some.questions)
