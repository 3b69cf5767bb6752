"""The commands of docs/ipu_pod.md, in its order, over the stand-in for PopTorch, with a small recipe."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from tests.old_hosts import needs_verdict
from tests.processes import held_port

from .conftest import ROOT, poprun

pytestmark = pytest.mark.slow

SMALL = ("--training-steps", "2", "--eval-batches", "1", "--dataloader-workers", "0")


def commands():
    """The words of each command that starts a runner on IPUs or asks for a verdict; poprun's come first."""
    page = (ROOT / "docs" / "ipu_pod.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (.+)$", re.sub(r" *\\\n *", " ", page), flags=re.MULTILINE)
    found = [shlex.split(line) for line in lines if "run_pretraining.py" in line and "torchrun" not in line]
    assert sum("--device" in words or "--dry-run" in words for words in found) == len(found)
    return found


def adapted(words, stand_in, folder):
    """The arguments of the runner: the page's flags, its folders in `folder`, and a recipe of seconds."""
    arguments = words[words.index("run_pretraining.py") + 1 :]
    arguments[arguments.index("--config") + 1] = "test_groupbert"
    for flag in ("--output", "--executable-cache", "--profile-folder"):
        if flag in arguments:
            at = arguments.index(flag) + 1
            arguments[at] = str(folder / arguments[at])
    if "--simulator-python" in arguments:
        arguments[arguments.index("--simulator-python") + 1] = sys.executable
    if "--output" not in arguments:
        arguments += ["--output", str(folder / "ahead")]
    data = ["--corpus", str(stand_in.corpus), "--cache-folder", str(stand_in.cache), "--no-progress-bar"]
    return [*arguments, *data, *SMALL, "--validation-fraction", "0.2", "--preprocessing-workers", "0"]


@needs_verdict
def test_the_pages_commands_run(stand_in, tmp_path):
    ours = [adapted(words, stand_in, tmp_path) for words in commands() if words[0] == "python"]
    assert len(ours) == 7
    # The demo's second command resumes what Ctrl-C stopped: here a run of one update.
    first = next(arguments for arguments in ours if "--resume" in arguments)
    stopped = ours[ours.index(first) - 1]
    stopped[stopped.index("--eval-batches") - 1] = "1"
    program = f"""
        import sys
        import command_line, run_pretraining
        for arguments in {ours!r}:
            sys.argv[1:] = arguments
            assert command_line.run_as_program(run_pretraining.main) == 0, arguments
    """
    ended = stand_in.code(program)
    assert ended.out.count("test_groupbert on pod4: FITS (predicted)") == 1
    assert ended.out.count("done: step 2,") == 4 and ended.out.count("done: step 1,") == 1
    assert "compiled: " in ended.out and ended.out.count("device: ipu (Graphcore's PopTorch") == 6
    assert any("autoReport.directory" in call["options"]["engineOptions"] for call in ended.of("compile"))


@pytest.mark.parametrize(
    "words", [words for words in commands() if words[0] == "poprun"], ids=lambda words: words[2]
)
def test_the_pages_commands_under_poprun(stand_in, tmp_path, words):
    numbers = [int(words[words.index(flag) + 1]) for flag in ("--num-instances", "--num-replicas")]
    count, replicas = numbers
    arguments = adapted(words, stand_in, tmp_path)
    arguments += ["--replication-factor", str(replicas), "--target", "pod64"]
    program = [ROOT / "run_pretraining.py", *arguments]
    with held_port() as port:
        processes = [
            stand_in.start(program, **poprun(count, index, replicas, port=port)) for index in range(count)
        ]
        ended = [stand_in.end(process) for process in processes]
    assert [one.status for one in ended] == [0] * count, [one.err for one in ended]
    assert all(one.names() == ended[0].names() for one in ended), (
        "instances whose devices wait for each other"
    )
    assert f"instances: {count}" in ended[0].out or count == 1
    assert "done: step 2," in ended[0].out
