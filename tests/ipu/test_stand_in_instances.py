"""Several instances under PopRun's environment, over the stand-in for PopTorch."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.processes import held_port

from .conftest import poprun
from .test_on_stand_in import assert_same

pytestmark = pytest.mark.slow

STEPS = ("--training-steps", 4, "--checkpoint-steps", 2, "--eval-steps", 2, "--eval-batches", 5)
TWO = ("--replication-factor", 2)


def test_each_instance_gets_its_own_random_state_back(stand_in, tmp_path):
    """All make the same calls, as their devices synchronise; a resumed run equals one that never stopped."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with held_port() as port:
        ended = stand_in.instances(2, whole, *STEPS, *TWO, MASTER_PORT=port)
    assert [one.status for one in ended] == [0, 0], ended[0].err + ended[1].err
    assert ended[0].names() == ended[1].names()
    state = json.loads((whole / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert [state["rng_state"], *state["other_rng_states"]] == [[42, 0, 2], [42, 1, 2]]

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step_00000004")
    with held_port() as port:
        resumed = stand_in.instances(2, parts, *STEPS, *TWO, "--resume", MASTER_PORT=port)
    assert [one.status for one in resumed] == [0, 0], resumed[0].err + resumed[1].err
    for index, one in enumerate(resumed):
        assert one.of("write random state", "training")[0]["state"] == [42, index, 2]
    assert_same(whole, parts, 4)

    shutil.rmtree(parts / "checkpoints" / "step_00000004")
    (alone,) = stand_in.instances(1, parts, *STEPS, *TWO, "--resume", replicas=2)
    assert alone.status == 0, alone.err
    assert "the random states of 2 instances, this run has 1: random numbers start from the seed" in alone.err
    assert [42, 0, 2] not in [call["state"] for call in alone.of("write random state", "training")]


def test_what_popruns_numbers_are_checked_against(stand_in, tmp_path):
    """popdist.checkNumIpusPerReplica only answers True or False."""
    # Refused at once, before the instances look for each other.
    sharded = ("--replicated-tensor-sharding", *TWO)
    ended, *instances = stand_in.pretrainings(
        (tmp_path / "run", TWO, poprun(1, 0, 2, ipus_per_replica=4)),
        *((tmp_path / "run", sharded, poprun(2, index, 2)) for index in range(2)),
    )
    assert ended.status == 2 and ended.calls == []
    assert "ipus_per_replica is 2, but PopRun reserved 4 IPUs for each replica" in ended.err
    assert "poprun --ipus-per-replica 2" in ended.err

    for ended in instances:
        assert ended.status == 2 and ended.calls == []
        assert "each of the 2 instances has 1 of the 2 replicas" in ended.err
