"""The weight update by hand: bytes, collectives, turns, and what IPUs share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from ipu_simulator.cost.constants import constants
from ipu_simulator.cost.settings import OptimizerSettings, Settings
from ipu_simulator.cost.time import program_of
from ipu_simulator.cost.update import Held, Trained, trained_weights, update_with
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import stages_of

from tests.ipu_simulator.cost.graphs import chain
from tests.ipu_simulator.cost.programs import program

BOW = target("bow-pod16")
# Links of 16 GB/s, two in one direction of a ring, at 85%.
RING = 16e9 * 2 * 0.85
HIDDEN, VOCABULARY, POSITIONS = 512, 30522, 512


def update_of(settings, graph):
    settings = replace(settings, updates_overlap=False)
    return program_of(graph, stages_of(graph, settings), settings, BOW, constants()).update


def test_the_update_by_hand():
    """IPU 0 has the embeddings and the heads, each other one some layers; they update in turn."""
    graph, settings = program("bert-medium")
    large = {
        0: (VOCABULARY + POSITIONS) * HIDDEN + 2 * HIDDEN * HIDDEN + VOCABULARY,
        1: 2 * 12 * HIDDEN**2,
        2: 3 * 12 * HIDDEN**2,
        3: 3 * 12 * HIDDEN**2,
    }
    small = {0: 2 * HIDDEN + 2 * HIDDEN + 2 * HIDDEN + 2 * HIDDEN + 2 * HIDDEN + 2}
    small.update({ipu: layers * 13 * HIDDEN for ipu, layers in ((1, 2), (2, 3), (3, 3))})
    counts = {0: (5, 9), 1: (2 * 6, 2 * 10), 2: (3 * 6, 3 * 10), 3: (3 * 6, 3 * 10)}
    made = update_of(settings, graph)
    assert [len(turn) for turn in made.turns] == [1, 1, 1, 1]
    for ipu, (update,) in enumerate(made.turns):
        # Two replicas: half of what is scattered and gathered goes to the other one, and so does a ring's.
        assert update.ring_bytes == (2 + 2) * (large[ipu] + small[ipu]) / 2
        assert update.gradient_bytes == 2 * (large[ipu] + small[ipu])
        stored = large[ipu] / 2 + small[ipu]
        assert update.remote_bytes == 2 * (4 + 4) * stored
        assert update.cycles == pytest.approx(30 * stored / BOW.tiles_per_ipu)
        many, few = counts[ipu]
        assert (update.collectives, update.remote_buffers) == (2 * many + 1, 4 * (many + few))
    parts = made.parts_s(BOW, constants())
    latency, each = constants().collective_latency_s, constants().remote_buffer_s
    collectives = sum(2 * many + 1 for many, _ in counts.values())
    assert parts["collectives"] == pytest.approx(
        collectives * latency + sum(2 * (large[ipu] + small[ipu]) / RING for ipu in large)
    )
    buffers = sum(4 * (many + few) for many, few in counts.values())
    state = sum(16 * (large[ipu] / 2 + small[ipu]) for ipu in large)
    assert parts["remote buffers"] == pytest.approx(state / 20e9 + buffers * each)


def test_without_replicas_or_streaming_memory():
    graph, settings = program("bert-medium")
    adam = settings.optimizer
    alone = update_of(replace(settings, replicas=1, optimizer=replace(adam, sharded=False)), graph)
    assert all(update.ring_bytes == 0 == update.collectives for (update,) in alone.turns)
    assert alone.parts_s(BOW, constants())["collectives"] == 0
    kept = update_of(replace(settings, optimizer=replace(adam, location="on_chip")), graph)
    assert all(update.remote_bytes == 0 == update.remote_buffers for (update,) in kept.turns)


def settings_with(**changes):
    made = Settings(
        micro_batch_size=1,
        gradient_accumulation=8,
        replicas=4,
        device_iterations=1,
        matmul_proportions=(0.2,) * 4,
        half_partials=True,
        execution="pipelined",
        recompute=True,
        optimizer=OptimizerSettings("lamb", (4, 4), "off_chip", sharded=True),
    )
    return replace(made, **changes)


def seconds(settings, machine=BOW, weights=None, ipus=(0, 1, 2, 3), replica=4):
    elements = [10_000_000, 30_000_000, 20_000_000, 20_000_000]
    stages = {
        stage: Trained(sharded=Held(elements[stage], 2 * elements[stage], 10)) for stage in range(len(ipus))
    }
    made = update_with(weights or stages, ipus, replica, settings, machine, constants())
    return made.parts_s(machine, constants())


def test_ipus_update_in_turn_unless_the_program_lets_them_overlap():
    in_turn = seconds(settings_with())
    each = [
        seconds(settings_with(), weights={stage: Trained(sharded=Held(elements, 2 * elements, 10))})
        for stage, elements in enumerate([10_000_000, 30_000_000, 20_000_000, 20_000_000])
    ]
    for part, value in in_turn.items():
        assert value == pytest.approx(sum(alone[part] for alone in each)), part
    # IPU 0 apart, then the others at once: the slowest of them counts, and they share streaming memory.
    overlap = seconds(settings_with(updates_overlap=True, updates_apart=frozenset({0})))
    assert overlap["collectives"] == pytest.approx(each[0]["collectives"] + each[1]["collectives"])
    starts = 40 * constants().remote_buffer_s
    remote = [alone["remote buffers"] - starts for alone in each]
    assert overlap["remote buffers"] == pytest.approx(2 * starts + remote[0] + 3 * remote[1])
    together = seconds(settings_with(updates_overlap=True))
    assert together["remote buffers"] == pytest.approx(starts + 4 * remote[1])


def test_an_all_reduce_of_resnet_50_over_64_128_and_256_replicas():
    """51 MB took 4.4, 7.9 and 10.6 ms (MLPerf v1.1, differences of published steps)."""
    elements = 25_557_032
    weights = {0: Trained(Held(25_500_000, 51_000_000, 54), Held(57_032, 114_064, 107))}
    sgd = OptimizerSettings("sgd", (), "on_chip", sharded=False)
    for machine, published_ms in (("pod64", 4.4), ("pod128", 7.9), ("pod256", 10.6)):
        settings = settings_with(replicas=target(machine).num_ipus, optimizer=sgd)
        made = seconds(settings, target(machine), weights, (0,), 1)
        assert 1e3 * made["collectives"] == pytest.approx(published_ms, rel=0.1)
        ring_s = 4 * elements * (1 - 1 / settings.replicas) / RING
        pods = settings.replicas // 64
        between_s = 4 * elements * (pods - 1) / pods / 12.5e9
        latency_s = constants().collective_latency_s * math.log2(settings.replicas)
        assert made["collectives"] == pytest.approx(ring_s + between_s + latency_s)


def test_instances_share_the_state_among_their_replicas_only():
    """With one replica an instance, nothing is sharded: its update is that of a program without sharding."""
    four, two, one = (seconds(settings_with(replicas=4, instances=count)) for count in (1, 2, 4))
    adam = OptimizerSettings("lamb", (4, 4), "off_chip", sharded=False)
    assert one == seconds(settings_with(replicas=4, optimizer=adam))
    assert four["remote buffers"] < two["remote buffers"] < one["remote buffers"]


def test_ipus_of_an_m2000_share_its_streaming_memory():
    """A single replica of one IPU has streaming memory to itself; four replicas share it."""
    adam = OptimizerSettings("adam", (4, 4), "off_chip", sharded=False)
    weights = {0: Trained(whole=Held(1_000_000, 2_000_000, 7))}
    remote = [
        seconds(settings_with(replicas=replicas, optimizer=adam), BOW, weights, (0,), 1)["remote buffers"]
        - 28 * constants().remote_buffer_s
        for replicas in (1, 2, 4, 8)
    ]
    assert remote == pytest.approx([remote[0], 2 * remote[0], 4 * remote[0], 4 * remote[0]])


def test_replicas_of_several_instances_also_sum_their_shards():
    """Two instances of two replicas: a shard is half a weight, and its gradient is all-reduced by two."""
    elements, gradient = 1_000_000, 2
    weights = {0: Trained(Held(elements, 2 * elements, 3), Held(100, 200, 1))}
    settings = settings_with(replicas=4, instances=2)
    ((update,),) = update_with(weights, (0,), 1, settings, BOW, constants()).turns
    scattered_and_gathered = (gradient + 2) * elements / 2
    between = 2 * gradient * (elements / 2) / 2
    whole = 2 * gradient * 100 * 3 / 4
    assert update.ring_bytes == scattered_and_gathered + between + whole
    assert update.collectives == 3 * 3 + 1


COMPUTED = {"update_cycles_per_tensor_of_state"}
SENT = {"collective_latency_s", "link_bytes_per_s", "links_of_a_ring", "link_efficiency"}
BEYOND_A_POD = {"gateway_link_bytes_per_s", "ipus_per_pod"}
STREAMED = {"streaming_memory_bytes_per_s", "remote_buffer_s"}


@pytest.mark.parametrize(
    ("replicas", "ipus_per_replica", "location", "numbers"),
    [
        (1, 4, "on_chip", COMPUTED),
        (4, 1, "on_chip", COMPUTED | SENT),
        (1, 1, "off_chip", COMPUTED | STREAMED),
        (1, 4, "off_chip", COMPUTED | STREAMED | {"ipus_per_m2000"}),
        (2, 1, "off_chip", COMPUTED | SENT | STREAMED | {"ipus_per_m2000"}),
        (16, 4, "on_chip", COMPUTED | SENT),
        (32, 4, "on_chip", COMPUTED | SENT | BEYOND_A_POD),
        (1, 128, "on_chip", COMPUTED),
    ],
)
def test_an_update_names_the_numbers_that_it_rests_on(replicas, ipus_per_replica, location, numbers):
    adam = OptimizerSettings("adam", (4, 4), location, sharded=replicas > 1)
    # An IPU without weights takes part in nothing.
    weights = {0: Trained(), 1: Trained(sharded=Held(1000, 2000, 1))}
    settings = settings_with(replicas=replicas, optimizer=adam)
    made = update_with(weights, (0, 1), ipus_per_replica, settings, BOW, constants())
    assert made.numbers(target("pod128")) == numbers


def test_a_weight_of_the_least_size_is_sharded():
    """Weights of 64 x 64 and 64 x 128 elements: PopART shards from 8,192 elements on."""
    graph = chain((0,), [[64, 128]])
    held = trained_weights(graph, stages_of(graph, settings_with()))
    assert held == {0: Trained(sharded=Held(8192, 2 * 8192, 1), whole=Held(4096, 2 * 4096, 1))}


def test_without_an_optimizer_nothing_is_updated():
    graph, settings = program("bert-medium")
    assert update_of(replace(settings, optimizer=None), graph) is None
