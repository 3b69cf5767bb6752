#!/usr/bin/env python3
"""Scores answers to SQuAD's questions.

    python run_squad.py --score predictions.json --data dev-v1.1.json.gz

`main(argv)` returns a result; only `__main__` turns it, or an error, into an exit status.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from data import DataError
from data.squad import evaluate, read_json, read_questions


def main(argv: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Scores a file of predictions, prints the result as one JSON object on stdout, and returns it.

    Raises ValueError subclasses for mistakes that a user can mend.
    """
    flags = _parse(list(sys.argv[1:] if argv is None else argv))
    if flags.score is None:
        raise DataError(
            "run_squad.py can't fine-tune yet: it scores existing predictions. "
            "Give --score PREDICTIONS --data FILE."
        )
    if flags.data is None:
        raise DataError("--score needs the questions too: give --data FILE, a SQuAD JSON file.")
    result = score(flags.score, flags.data)
    print(json.dumps(result))
    return result


def score(predictions_file: Path, data_file: Path) -> Dict[str, Any]:
    """The metrics of {"question id": "answer"} on a SQuAD file; both plain or gzipped.

    Says on stderr how many questions have no prediction. Raises DataError for other content.
    """
    data = read_questions(data_file, answers="texts")
    predictions = read_json(predictions_file)
    if not isinstance(predictions, dict):
        raise DataError(
            f"{str(predictions_file)!r} holds a JSON {type(predictions).__name__}, not an object "
            '{"question id": "answer"}. Give a predictions.json.'
        )
    missing = [question.id for question in data.questions if question.id not in predictions]
    if missing:
        print(
            f"{len(missing)} of {len(data.questions)} questions have no prediction and score 0, "
            f"{missing[0]!r} first: check that the predictions are of this file",
            file=sys.stderr,
        )
    return evaluate(data, predictions)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--score", type=Path, metavar="PREDICTIONS", help='score this JSON file of {"question id": "answer"}'
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="the SQuAD JSON file (1.1 or 2.0)")
    return parser.parse_args(arguments)


def run_as_program() -> int:
    """The exit status: 0, or 2 with one message on stderr for what a user can mend; else a traceback."""
    try:
        main()
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_as_program())
