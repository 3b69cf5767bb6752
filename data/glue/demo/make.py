"""Writes the demo's pairs in QNLI's format: does the sentence answer the question about a library function?

    python -m data.glue.demo.make

The functions are invented, and a fact and its question have one form each with words in common, as in
data/squad/demo, so that a small model learns within minutes. train.tsv and dev.tsv have no function in
common. A wrong sentence states another fact about the same function.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import List, Tuple

from data.squad.demo.make import ASKED, NOUNS, VERBS, sentence_of

FOLDER = Path(__file__).resolve().parent
SEED = 5
PAIRS = {"train": 3000, "dev": 400, "test": 60}


def main() -> None:
    rng = random.Random(SEED)
    names = [f"{verb}_{noun}" for verb in VERBS for noun in NOUNS]
    rng.shuffle(names)
    start = 0
    for split, count in PAIRS.items():
        share = len(names) * count // sum(PAIRS.values())
        write(split, count, names[start : start + share], rng)
        start += share


def write(split: str, count: int, functions: List[str], rng: random.Random) -> None:
    """A file of `count` pairs on these functions; test.tsv has no labels, as GLUE's."""
    has_labels = split != "test"
    lines = ["index\tquestion\tsentence" + ("\tlabel" if has_labels else "")]
    for number in range(count):
        question, sentence, label = pair(functions, is_right=rng.random() < 0.5, rng=rng)
        lines.append(f"{number}\t{question}\t{sentence}" + (f"\t{label}" if has_labels else ""))
    (FOLDER / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pair(functions: List[str], *, is_right: bool, rng: random.Random) -> Tuple[str, str, str]:
    """A question, a sentence and the label."""
    function = rng.choice(functions)
    kind, other = rng.sample(sorted(ASKED), 2)
    question = ASKED[kind][1].format(f=function)
    if is_right:
        return question, sentence_of(kind, function, rng), "entailment"
    return question, sentence_of(other, function, rng), "not_entailment"


if __name__ == "__main__":
    main()
