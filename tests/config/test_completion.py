"""Completion: what bash completes after a few words."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from unittest import mock

import pytest

import config
import run_pretraining

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script() -> str:
    told = io.StringIO()
    with (
        contextlib.redirect_stdout(told),
        mock.patch.object(sys, "argv", ["run_pretraining.py"]),
        pytest.raises(SystemExit) as ended,
    ):
        run_pretraining.main(["--completion"])
    assert ended.value.code == 0
    return told.getvalue()


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "groupbert_base_128"], "groupbert_base_128_pod16"),
        (["--optimizer", "la"], "lamb lamb_no_bias_correction"),
        (["--config", "demo", "--micro-b"], "--micro-batch-size"),
        (["--doc-st"], ""),  # SQuAD's
        (["--output", ""], ""),  # the shell's own completion of files
    ],
)
def test_words_are_completed(script: str, words: list[str], expected: str) -> None:
    quoted = " ".join(f"'{word}'" for word in ["run_pretraining.py", *words])
    program = f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _run_pretraining_py\n"
    program += "echo ${COMPREPLY[*]}"
    done = subprocess.run([str(BASH), "-c", program], capture_output=True, text=True, timeout=120)
    assert not done.stderr
    completed = done.stdout.split()
    if words[0] == "--config" and len(words) == 2:
        assert completed == [name for name in config.names() if name.startswith(words[1])]
        assert expected in completed
    else:
        assert completed == expected.split()
