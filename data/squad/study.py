"""Subsets of SQuAD files for small experiments, and the scores of baselines that don't read the context.

python -m data.squad.study part dev-v1.1.json.gz part.json --questions 500 --characters 600
python -m data.squad.study baselines train.json validation.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from ..files import DataError
from ..json_files import read_json
from .files import QuestionSet, read_questions
from .scores import evaluate

_SEED = 0
_MOST_WORDS = 10


def part(content: Dict[str, Any], questions: int, characters: int, articles: str = "all") -> Dict[str, Any]:
    """Paragraphs with at most `characters` characters, drawn at random until they have `questions` questions.

    `articles`: "all", or the "even" or "odd" ones (counted from 0), so that two subsets share no article.
    """
    of_kind = {"all": content["data"], "even": content["data"][::2], "odd": content["data"][1::2]}[articles]
    every = [
        (article["title"], paragraph)
        for article in of_kind
        for paragraph in article["paragraphs"]
        if len(paragraph["context"]) <= characters
    ]
    random.Random(_SEED).shuffle(every)
    kept: List[Dict[str, Any]] = []
    found = 0
    for title, paragraph in every:
        if found >= questions:
            break
        found += len(paragraph["qas"])
        kept.append({"title": title, "paragraphs": [paragraph]})
    return {"version": content.get("version", "1.1"), "data": kept}


def baselines(train: QuestionSet, validation: QuestionSet) -> Dict[str, Dict[str, Any]]:
    """Scores of baselines that don't read the context: the training set's most frequent answer; the first
    words
    of the context, as many as score best in training; "" if questions are impossible."""
    validation = replace(validation, has_impossible=train.has_impossible or validation.has_impossible)
    answers = Counter(question.answers[0].text for question in train.questions if question.answers)
    constant = min(answers, key=lambda text: (-answers[text], text))

    def first_words(data: QuestionSet, count: int) -> Dict[str, str]:
        return {q.id: " ".join(q.context.split()[:count]) for q in data.questions}

    words = max(
        range(1, _MOST_WORDS + 1), key=lambda n: (float(evaluate(train, first_words(train, n))["f1"]), -n)
    )
    answered = {
        f"always {constant!r}": {q.id: constant for q in validation.questions},
        f"the context's first {words} word(s)": first_words(validation, words),
    }
    if validation.has_impossible:
        answered["always no answer"] = {q.id: "" for q in validation.questions}
    return {name: evaluate(validation, predictions) for name, predictions in answered.items()}


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("part", help="write a subset of a SQuAD file")
    cut.add_argument("source", type=Path)
    cut.add_argument("target", type=Path)
    cut.add_argument("--questions", type=int, required=True, help="minimum number, if the file has as many")
    cut.add_argument("--characters", type=int, required=True, help="maximum length of a context")
    cut.add_argument("--articles", choices=("all", "even", "odd"), default="all")
    without = commands.add_parser("baselines", help="score baselines that don't read the context")
    without.add_argument("train", type=Path)
    without.add_argument("validation", type=Path)
    flags = parser.parse_args(argv)
    if flags.command == "part":
        read_questions(flags.source)  # raises for an invalid file
        content = part(read_json(flags.source), flags.questions, flags.characters, flags.articles)
        flags.target.write_text(json.dumps(content) + "\n", encoding="utf-8")
        print(f"{flags.target}: {len(read_questions(flags.target).questions)} questions")
    else:
        for name, scores in baselines(read_questions(flags.train), read_questions(flags.validation)).items():
            shown = {
                key: value if isinstance(value, int) else round(value, 2) for key, value in scores.items()
            }
            print(f"{name}: {json.dumps(shown)}")


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
