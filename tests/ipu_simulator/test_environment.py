"""Machines: their data files, compared with the datasheets' totals."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from ipu_simulator import environment, variables

from ipu.placement import machine_ipus

DROP_IN = Path(environment.__file__).parents[1]


def test_configurations_and_simulator_know_the_same_machines():
    """In the same order, in which errors and --help list them."""
    names = "pod4 pod16 pod64 pod128 pod256 bow-pod4 bow-pod16 bow-pod64 bow-pod128 bow-pod256".split()
    assert list(environment.TARGETS) == list(machine_ipus()) == names
    assert {name: environment.target(name).num_ipus for name in names} == machine_ipus()


def test_every_data_file_is_a_target_or_what_targets_share():
    folder = Path(environment.__file__).resolve().parent / "targets"
    assert {path.stem for path in folder.glob("*.json")} == {*environment.TARGETS, "mk2", "gc200", "bow"}


@pytest.mark.parametrize("name", environment.TARGETS)
def test_every_fact_has_unit_source_and_confidence(name):
    facts = environment.facts(name)
    assert {fact.name for fact in facts} == {field.name for field in fields(environment.Target)} - {"name"}
    for fact in facts:
        assert fact.unit and len(fact.source) > 10 and fact.confidence in ("high", "medium", "low")
        assert fact.value > 0


@pytest.mark.parametrize(
    ("name", "peak_petaflops"), [("pod64", 15.978), ("bow-pod16", 5.578), ("bow-pod64", 22.31)]
)
def test_peak_is_the_datasheets(name, peak_petaflops):
    """POD64's peak gives its clock; Bow's peak follows from the clock in MLPerf's system descriptions."""
    target = environment.target(name)
    assert target.peak_flops_per_s * target.num_ipus / 1e15 == pytest.approx(peak_petaflops, rel=1e-3)


def test_memory_is_the_datasheets_900_mb():
    target = environment.target("pod4")
    assert target.bytes_per_ipu == 940_572_672
    assert target.peak_flops_per_s == pytest.approx(249.66e12, rel=1e-4)


def test_the_environment_names_the_machine(monkeypatch):
    monkeypatch.delenv(environment.TARGET_VARIABLE, raising=False)
    assert environment.target().name == "pod16"
    monkeypatch.setenv(environment.TARGET_VARIABLE, "bow-pod64")
    assert environment.target().num_ipus == 64
    assert environment.target("pod4").num_ipus == 4


def test_an_unknown_machine_gets_the_nearest_name(monkeypatch):
    with pytest.raises(environment.UnknownTarget, match="target is 'bow-pod61'"):
        environment.target("bow-pod61")
    monkeypatch.setenv(environment.TARGET_VARIABLE, "pod17")
    with pytest.raises(environment.UnknownTarget, match="IPU_SIMULATOR_TARGET is 'pod17'"):
        environment.target()


def imported(**values: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(DROP_IN), **values}
    return subprocess.run(
        [sys.executable, "-c", "import poptorch"], env=variables, capture_output=True, text=True, timeout=120
    )


def test_importing_lists_every_variable_with_a_bad_value(tmp_path):
    (tmp_path / "file").write_text("")
    refused = imported(
        IPU_SIMULATOR_STRICT="true",
        IPU_SIMULATOR_MERGE="no",
        IPU_SIMULATOR_TARGET="pod61",
        IPU_SIMULATOR_PRECISION="float61",
        IPU_SIMULATOR_PROFILE=str(tmp_path / "file"),
        IPU_SIMULATOR_CUSTOM_OPS=str(tmp_path / "absent.py"),
    )
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    for words in (
        "IPU_SIMULATOR_STRICT is 'true'; a whole number from 0 on is expected",
        "IPU_SIMULATOR_MERGE is 'no'; a whole number from 0 on is expected",
        "IPU_SIMULATOR_TARGET is 'pod61', which is not a known target",
        "IPU_SIMULATOR_PRECISION is 'float61'",
        f"IPU_SIMULATOR_PROFILE is '{tmp_path / 'file'}', a file",
        f"IPU_SIMULATOR_CUSTOM_OPS is '{tmp_path / 'absent.py'}', but there is no such file",
    ):
        assert words in last
    empty = dict.fromkeys([name for name in vars(variables).values() if str(name).startswith("IPU_SIM")], "")
    assert imported(**empty).returncode == 0


def test_a_closed_stderr_gets_nothing_and_stdout_neither():
    # Services close it; print() takes None for stdout.
    program = "import poptorch, torch; poptorch.ipu_print_tensor(torch.ones(1)); print('mine')"
    environment = {**os.environ, "PYTHONPATH": str(DROP_IN)}
    environment.pop("IPU_SIMULATOR_ANNOUNCED", None)
    command = f'"{sys.executable}" -c "{program}" 2>&-'
    done = subprocess.run(
        command, shell=True, env=environment, stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "mine\n")
