"""Writes the demo's questions: invented library functions, described in the manner of Python's documentation.

    python -m data.squad.demo.make

train.json and validation.json have the same kinds of sentences, but no function or module in common, so only
the text has the answers. They are in SQuAD's format, version 1.1.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Dict, List, Tuple

FOLDER = Path(__file__).resolve().parent
SEED = 11
PARAGRAPHS = {"train": 1200, "validation": 60}
FACTS_OF_A_FUNCTION = 3

VERBS = "read write split join merge sort count find parse load store copy trim scan pack fetch".split()
NOUNS = "lines words table record image index header buffer folder stream token graph queue field".split()
MODULES = "textkit numbox pathway logline netcore datebook filebox audiolab maptools webgate".split()
RESULTS = "a list of strings;an integer;a dictionary;a tuple of two numbers;a new object;a generator;None"
ERRORS = "ValueError TypeError KeyError IndexError OSError RuntimeError".split()
SYSTEMS = "Linux Windows macOS FreeBSD".split()

# The form of a fact, with the function {f} and the answer {x}, and its question. Both have one form only, and
# words in common: so a small model learns within minutes which sentence a question is about.
ASKED: Dict[str, Tuple[str, str]] = {
    "module": ("The module {x} contains {f}.", "Which module contains {f}?"),
    "version": ("The version {x} added {f}.", "Which version added {f}?"),
    "result": ("{f} returns {x}.", "What does {f} return?"),
    "error": ("{f} raises {x}.", "Which exception does {f} raise?"),
    "system": ("{f} is available on {x} only.", "On which system is {f} available?"),
    "default": ("The default timeout of {f} is {x} seconds.", "What is the default timeout of {f}?"),
}


def _answer(kind: str, modules: List[str], rng: random.Random) -> str:
    choices = {
        "module": modules,
        "version": [f"{rng.randrange(1, 5)}.{rng.randrange(20)}"],
        "result": RESULTS.split(";"),
        "error": ERRORS,
        "system": SYSTEMS,
        "default": [str(rng.randrange(2, 120))],
    }
    return rng.choice(choices[kind])


def sentence_of(kind: str, function: str, rng: random.Random) -> str:
    """A sentence that states a fact of this kind."""
    return ASKED[kind][0].format(f=function, x=_answer(kind, MODULES, rng))


def _paragraph(name: str, function: str, modules: List[str], rng: random.Random) -> Dict[str, Any]:
    """Some facts of a function, in random order, and a question for each."""
    context = ""
    questions = []
    for number, kind in enumerate(rng.sample(sorted(ASKED), FACTS_OF_A_FUNCTION)):
        sentence, asked = ASKED[kind]
        answer = _answer(kind, modules, rng)
        before, after = sentence.split("{x}")
        context += (" " if context else "") + before.format(f=function)
        questions.append(
            {
                "id": f"{name}-{number}",
                "question": asked.format(f=function),
                "answers": [{"text": answer, "answer_start": len(context)}],
            }
        )
        context += answer + after.format(f=function)
    return {"context": context, "qas": questions}


def make(split: str) -> Dict[str, Any]:
    """The content of a split's file."""
    rng = random.Random(f"{SEED} {split}")
    functions = [f"{verb}_{noun}" for verb in VERBS for noun in NOUNS]
    random.Random(SEED).shuffle(functions)
    cut, few = len(functions) * 4 // 5, len(MODULES) * 4 // 5
    mine = functions[:cut] if split == "train" else functions[cut:]
    modules = MODULES[:few] if split == "train" else MODULES[few:]
    paragraphs = [
        _paragraph(f"{split}-{number}", rng.choice(mine), modules, rng) for number in range(PARAGRAPHS[split])
    ]
    return {"version": "1.1", "data": [{"title": "Invented functions", "paragraphs": paragraphs}]}


def text_of(split: str) -> str:
    """The split's file: JSON, one paragraph per line."""
    content = make(split)
    (article,) = content["data"]
    lines = ",\n".join(json.dumps(paragraph) for paragraph in article.pop("paragraphs"))
    return json.dumps(content)[: -len("}]}")] + f', "paragraphs": [\n{lines}\n]}}]}}\n'


def main() -> None:
    for split in PARAGRAPHS:
        (FOLDER / f"{split}.json").write_text(text_of(split), encoding="utf-8")


if __name__ == "__main__":
    main()
