"""Compilation on IPUs: one that fails, and one ahead of a run, which must be the run's own."""

from __future__ import annotations

import sys

import pytest

from tests.old_hosts import needs_verdict

from .conftest import ROOT, poprun

pytestmark = pytest.mark.slow

ONE = ("--training-steps", 1, "--eval-batches", 1)


@needs_verdict
def test_out_of_memory_ends_with_the_verdict_and_without_a_traceback(stand_in, tmp_path):
    words = (*ONE, "--simulator-python", sys.executable)
    faults = [{"STAND_IN_COMPILATION": f"{kind} out of memory"} for kind in ("training", "inference")]
    runs = stand_in.pretrainings(
        *((tmp_path / str(number), words, fault) for number, fault in enumerate(faults))
    )
    for ended, what in zip(runs, ("training", "evaluation")):
        assert ended.status == 2
        assert "Traceback" not in ended.err
        assert f"error: PopTorch can't compile the {what} program:" in ended.err
        assert "Cannot fit all variable data onto one or more tiles" in ended.err
        assert "test_groupbert on pod4: FITS (predicted)" in ended.err, "the simulator's verdict"
        assert "the verdict above is wrong here" in ended.err and "--matmul-proportion" in ended.err


def test_another_error_of_a_compilation_is_told_as_it_is(stand_in, tmp_path):
    ended = stand_in.pretraining(tmp_path / "run", *ONE, STAND_IN_COMPILATION="training failed")
    assert ended.status == 2 and "Traceback" not in ended.err and "verdict" not in ended.err
    assert "error: PopTorch can't compile the training program:\n  In poptorch/" in ended.err


@needs_verdict
def test_a_verdict_by_another_python(stand_in, tmp_path):
    words = [ROOT / "run_pretraining.py", "--config", "test_groupbert", "--dry-run", "--output", tmp_path]
    ended = stand_in.end(stand_in.start([*words, "--simulator-python", sys.executable]))
    assert ended.status == 0, ended.err
    assert "test_groupbert on pod4: FITS (predicted)" in ended.out and (tmp_path / "verdict.json").exists()
    wrong = stand_in.end(stand_in.start([*words, "--simulator-python", "no-such-python"]))
    assert wrong.status == 2 and "--simulator-python no-such-python can't be started" in wrong.err


AHEAD = ("--compile-only", "--executable-cache")
THREE = (
    *("--ipus-per-replica", 3, "--num-layers", 3, "--layers-per-ipu", 1, 1, 1),
    *("--gradient-accumulation", 9, "--matmul-proportion", 0.1, 0.2, 0.3),
)


def test_an_executable_compiled_ahead_is_the_runs_own(stand_in, tmp_path):
    """A run reserves a power of two of IPUs, an offline target as many as the program uses."""
    folder = tmp_path / "executables"
    ahead, run = stand_in.pretrainings(
        (tmp_path / "ahead", (*AHEAD, folder, *THREE), {}),
        (tmp_path / "run", (*THREE, *ONE, "--executable-cache", folder), {}),
    )
    assert ahead.status == 0, ahead.err
    assert run.status == 0, run.err
    for kind in ("training", "inference"):
        (offline,), (attached,) = ahead.of("compile", kind), run.of("compile", kind)
        assert offline["offline"] and not attached["offline"]
        assert offline["target_ipus"] == attached["target_ipus"] == 4
        assert offline["inputs"] == attached["inputs"]
        options = [dict(entry["options"]) for entry in (offline, attached)]
        for each in options:
            each.pop("ipu_version", None)
            each.pop("connection_type")
        assert options[0] == options[1]
        assert options[0]["available_memory_proportion"] == {"0": 0.1, "1": 0.2, "3": 0.3}


def test_compiling_ahead_is_refused_where_no_run_would_find_it(stand_in, tmp_path):
    folder = tmp_path / "executables"
    replicas = ("--replication-factor", 3, "--target", "pod16")
    by_poprun, ended = stand_in.pretrainings(
        (tmp_path / "run", (*AHEAD, folder), poprun(1, 0, 1)),
        (tmp_path / "run", (*AHEAD, folder, *replicas), {}),
    )
    assert by_poprun.status == 2 and by_poprun.calls == []
    assert "--compile-only runs without poprun" in by_poprun.err
    assert ended.status == 2 and ended.of("compile") == []
    assert "which has 6 IPUs, reserves the next power of two" in ended.err
