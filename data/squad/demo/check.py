"""Whether the demo of questions learnt to answer them: on texts that it hasn't seen, and by the question.

python -m data.squad.demo.check output/squad_demo
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from ...files import DataError
from ...json_files import read_json
from ..files import Question, QuestionSet, read_questions
from ..scores import evaluate, normalize_answer
from .make import FOLDER

EXACT_GOAL = 0.60
DISTINCT_GOAL = 0.80  # a model that only learnt where answers are gives all questions of a text the same
_TEXTS_SHOWN = 3


def distinct_share(data: QuestionSet, predictions: Mapping[str, str]) -> float:
    """Of the pairs of questions about one text with different answers, the share that the predictions
    answer differently."""
    of_text: Dict[str, List[Question]] = {}
    for question in data.questions:
        of_text.setdefault(question.context, []).append(question)
    differ: List[bool] = []
    for questions in of_text.values():
        for one, other in itertools.combinations(questions, 2):
            if normalize_answer(one.answers[0].text) != normalize_answer(other.answers[0].text):
                answers = (normalize_answer(predictions.get(each.id, "")) for each in (one, other))
                differ.append(len(set(answers)) == 2)
    return sum(differ) / len(differ) if differ else 0.0


def check(data: QuestionSet, predictions: Mapping[str, str]) -> int:
    """Prints some answers and both shares; 0 if both reach their goals, otherwise 1."""
    contexts = list(dict.fromkeys(question.context for question in data.questions))[:_TEXTS_SHOWN]
    for context in contexts:
        print(f"\n{context}")
        for question in data.questions:
            if question.context == context:
                answer, right = predictions.get(question.id, ""), question.answers[0].text
                verdict = "right" if normalize_answer(answer) == normalize_answer(right) else f"not {right!r}"
                print(f"  {question.question:<50} {answer}  ({verdict})")
    exact = float(evaluate(data, predictions)["exact"]) / 100
    distinct = distinct_share(data, predictions)
    print(f"\nanswered exactly, on unseen texts          {exact:.1%} (goal: at least {EXACT_GOAL:.0%})")
    print(f"different answers to different questions   {distinct:.1%} (goal: at least {DISTINCT_GOAL:.0%})")
    return 0 if exact >= EXACT_GOAL and distinct >= DISTINCT_GOAL else 1


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        raise DataError("name one output folder: python -m data.squad.demo.check output/squad_demo")
    data = read_questions(FOLDER / "validation.json")
    status = check(data, read_json(Path(argv[0]) / "predictions.json"))
    if status:
        print("the demo failed: its answers don't follow the questions", file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
