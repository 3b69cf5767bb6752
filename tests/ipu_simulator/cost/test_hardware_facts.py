"""Every hardware fact of a machine is used: changing it changes a verdict."""

from __future__ import annotations

import functools
from dataclasses import fields, replace

import pytest
from ipu_simulator.cost.assess import assess
from ipu_simulator.environment import Target, target
from ipu_simulator.report import json_text, text

from tests.ipu_simulator.cost.graphs import Builder, chain, settings
from tests.ipu_simulator.cost.programs import program

# In one process, which captures each program once.
pytestmark = pytest.mark.xdist_group("programs")

BOW = target("bow-pod16")
# For these the change that acts: what suffices has to be cut first.
CHANGED = {"name": "bow-pod64", "num_ipus": 4, "streaming_memory_bytes": 1e6, "host_bytes_per_s": 1e3}


def programs():
    """BERT in float16; the same over two PODs, and with float32 partial sums; float32 products."""
    graph, made = program("bert-medium")
    yield graph, made
    yield graph, replace(made, replicas=32)
    yield graph, replace(made, half_partials=False)
    builder = Builder((0,))
    x, w = builder.tensor([64, 512], "input", "x", "float32"), builder.tensor([512, 512], "parameter", "w")
    y = builder.tensor([64, 512], dtype="float32")
    builder.op("mm", [x, w], [y])
    yield builder.graph([x], [y]), settings(1, optimizer=None, execution="sharded")


def verdicts(machine):
    """The reports, one after the other, without their lists of facts."""
    for graph, made in programs():
        verdict = assess(graph, made, machine, name="p")
        yield json_text(replace(verdict, details=replace(verdict.details, assumptions=())))


@functools.cache
def unchanged():
    return list(verdicts(BOW))


@pytest.mark.parametrize("fact", [field.name for field in fields(Target)])
def test_a_change_of_any_fact_changes_a_verdict(fact):
    value = getattr(BOW, fact)
    changed = replace(BOW, **{fact: CHANGED[fact] if fact in CHANGED else 2 * value})
    assert any(before != after for before, after in zip(unchanged(), verdicts(changed), strict=True))


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_state_off_the_chip_is_held_against_the_streaming_memory_of_each_m2000(replicas):
    """Two replicas of two IPUs share an M2000; a single replica has it alone."""
    graph = chain((0, 1, 0), [[16], [16, 16], [16]])
    made = settings(2, replicas=replicas)
    off_chip = replace(made, optimizer=replace(made.optimizer, location="off_chip"))
    state_bytes = 4 * 16 * 16 * (4 + 4) * min(replicas, 2)  # four weights a replica
    enough = replace(BOW, streaming_memory_bytes=state_bytes)
    too_little = replace(BOW, streaming_memory_bytes=state_bytes - 1)
    assert assess(graph, off_chip, enough, name="p").fits
    assert assess(graph, made, too_little, name="p").fits
    verdict = assess(graph, off_chip, too_little, name="p")
    assert not verdict.fits
    overflows = verdict.details.overflows
    assert [overflow.m2000 for overflow in overflows] == list(range((replicas + 1) // 2))
    assert all(overflow.over_bytes == 1 for overflow in overflows)
    assert all(sum(buffer.bytes for buffer in overflow.buffers) == state_bytes for overflow in overflows)
    assert "the streaming memory of M2000 0 lacks 1 B" in text(verdict)


def test_sharded_state_takes_a_share_of_streaming_memory():
    graph = chain((0, 1, 0), [[128], [128, 128], [128]])
    made = settings(2, replicas=2)
    optimizer = replace(made.optimizer, location="off_chip", sharded=True)
    tight = replace(BOW, streaming_memory_bytes=4 * 128 * 128 * 8)
    assert assess(graph, replace(made, optimizer=optimizer), tight, name="p").fits
    assert not assess(graph, replace(made, optimizer=replace(optimizer, sharded=False)), tight, name="p").fits


# Four weights of [128, 128] in float16, and their accumulators.
@pytest.mark.parametrize(
    ("kept", "size", "shards"),
    [
        ({"weights"}, 4 * 128 * 128 * 2, 1),
        ({"gradient_accumulators"}, 4 * 128 * 128 * 2, 1),
        ({"weights", "gradient_accumulators"}, 4 * 128 * 128 * 4, 1),
        ({"weights"}, 4 * 128 * 128 * 2, 2),
    ],
)
def test_all_that_is_kept_off_the_chip_is_held_against_the_streaming_memory(kept, size, shards):
    graph = chain((0, 1, 0), [[128], [128, 128], [128]])
    made = replace(settings(2, replicas=shards), off_chip=frozenset(kept), accumulator_bytes=2)
    if shards > 1:
        made = replace(made, off_chip_sharded=frozenset(kept))  # two shards on one M2000
    enough = replace(BOW, streaming_memory_bytes=size)
    assert assess(graph, made, enough, name="p").fits
    verdict = assess(graph, made, replace(BOW, streaming_memory_bytes=size - 1), name="p")
    assert [(found.m2000, found.over_bytes) for found in verdict.details.overflows] == [(0, 1)]
    assert {buffer.component for buffer in verdict.details.overflows[0].buffers} == kept


def test_stashes_off_the_chip_are_held_against_the_streaming_memory():
    graph = chain((0, 1, 0), [[16], [16, 16], [16]])
    made = replace(settings(2), off_chip=frozenset({"stashes"}))
    stashed = sum(memory.components["stashes"] for memory in assess(graph, made, BOW, name="p").ipus)
    assert stashed > 0
    enough = replace(BOW, streaming_memory_bytes=stashed)
    assert assess(graph, made, enough, name="p").fits
    assert not assess(graph, made, replace(BOW, streaming_memory_bytes=stashed - 1), name="p").fits


def test_replicas_need_ipus():
    graph = chain((0, 1, 0), [[16], [16, 16], [16]])
    small = replace(BOW, num_ipus=4)
    assert assess(graph, settings(2, replicas=2), small, name="p").fits
    verdict = assess(graph, settings(2, replicas=4), small, name="p")
    assert not verdict.fits and verdict.details.lacking_ipus == 4
    assert "too few IPUs: bow-pod16 has 4 fewer" in text(verdict)


@pytest.mark.parametrize("half_partials", [True, False])
def test_a_faster_tile_never_makes_a_verdict_slower(half_partials):
    graph, made = program("groupbert-medium")
    made = replace(made, half_partials=half_partials)
    base_s = assess(graph, made, BOW, name="p").step_s
    for fact in ("half_macs_per_cycle", "half_float_partials_macs_per_cycle", "load_bytes_per_cycle"):
        faster = replace(BOW, **{fact: 2 * getattr(BOW, fact)})
        assert assess(graph, made, faster, name="p").step_s <= base_s, fact
