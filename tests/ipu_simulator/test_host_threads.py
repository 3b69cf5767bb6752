"""Threads sleep while they wait for each other on a busy machine, unless the user or torch has decided."""

from __future__ import annotations

import importlib
import os
import sys

import pytest
from ipu_simulator import host_threads

POLICY = "OMP_WAIT_POLICY"


@pytest.fixture
def at_start(monkeypatch):
    """Before torch is imported, on two cores with a load."""

    def at(load, **variables):
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        for name in (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
            monkeypatch.setenv(name, "")  # what the code sets is undone with this
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)

    importlib.reload(host_threads)  # it remembers what it has chosen
    yield at
    importlib.reload(host_threads)


def test_threads_sleep_on_a_busy_machine_and_the_run_says_why(at_start):
    at_start(9.24)
    note = host_threads.choose_waiting()
    assert os.environ[POLICY] == "passive"
    assert "load 9.2 on 2 cores" in note and host_threads.waiting_note() == note


def test_threads_spin_on_an_idle_machine(at_start):
    at_start(0.9)
    assert host_threads.choose_waiting() == host_threads.waiting_note() == ""
    assert POLICY not in os.environ


@pytest.mark.parametrize("name, value", [(POLICY, "active"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "0")])
def test_a_users_choice_stays(at_start, name, value):
    at_start(9.0, **{name: value})
    assert host_threads.choose_waiting() == ""
    assert os.environ[name] == value and (name == POLICY or POLICY not in os.environ)


def test_nothing_is_set_once_torch_has_read_it(at_start, monkeypatch):
    at_start(9.0)
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert host_threads.choose_waiting() == "" and POLICY not in os.environ


def test_an_unknown_load_changes_nothing(at_start, monkeypatch):
    at_start(9.0)
    monkeypatch.delattr(os, "getloadavg")
    assert host_threads.choose_waiting() == "" and POLICY not in os.environ
