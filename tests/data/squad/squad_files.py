"""SQuAD-format content for tests, and the location of the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

CONTEXT = "The river Arve rises in Savoy. It joins the Rhône at Geneva."


def content(*questions: dict[str, Any], version: str = "1.1") -> dict[str, Any]:
    paragraphs = [{"context": CONTEXT, "qas": list(questions)}]
    return {"version": version, "data": [{"title": "Arve", "paragraphs": paragraphs}]}


def question(id_: str = "q1", answer: str = "Savoy", **changes: Any) -> dict[str, Any]:
    answers = [{"text": answer, "answer_start": CONTEXT.find(answer)}]
    return {"id": id_, "question": "Where does the Arve rise?", "answers": answers, **changes}


def write(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return file


def real(name: str) -> Path:
    file = SHARED / "squad" / name
    if not file.is_file():
        pytest.skip(f"needs the real {name}, which isn't here")
    return file
