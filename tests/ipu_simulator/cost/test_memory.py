"""Memory of small hand-made programs, on a machine with few small tiles."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from ipu_simulator.cost import memory as memory_model
from ipu_simulator.cost.constants import memory_constants
from ipu_simulator.cost.memory import memory_of, plans_of
from ipu_simulator.cost.ops import OpCost
from ipu_simulator.cost.settings import OptimizerSettings
from ipu_simulator.cost.verdict import COMPONENTS, Buffer, IpuMemory, Overflow, Pipeline
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import stages_of

from tests.ipu_simulator.cost.graphs import Builder, chain, settings

CONSTANTS = memory_constants()
WITHOUT_CODE = replace(
    CONSTANTS,
    code_bytes_fixed=0,
    code_bytes_per_distinct_operation=0,
    code_bytes_per_call=0,
    exchange_code_bytes_per_compute_set=0,
    exchange_code_bytes_per_collective=0,
)
STAGES, WIDTHS = (0, 1, 2, 0), [[16, 16], [16, 16, 16], [16], [16]]


def machine(bytes_per_tile: int = 638_976, tiles: int = 16):
    return replace(target("pod4"), bytes_per_tile=bytes_per_tile, tiles_per_ipu=tiles)


def estimate(program, constants=WITHOUT_CODE, on=None):
    graph = chain(STAGES, WIDTHS)
    return memory_of(graph, stages_of(graph, program), program, on or machine(), constants)


def test_components_sum_to_the_peak_and_to_what_is_always_live():
    for memory in estimate(settings(3), CONSTANTS).ipus:
        assert set(memory.components) == set(memory.always_live_components) == set(COMPONENTS)
        assert sum(memory.components.values()) == memory.peak_bytes
        assert sum(memory.always_live_components.values()) == memory.always_live_bytes
        assert memory.capacity_bytes == 16 * 638_976 == 16 * memory.tile_capacity_bytes
        assert memory.fullest_tile_bytes == sum(memory.fullest_tile_components.values())
        assert all(memory.components[part] >= memory.always_live_components[part] for part in COMPONENTS)


def test_stashes_have_a_slot_for_each_micro_batch_under_way():
    found = [memory.always_live_components["stashes"] for memory in estimate(settings(3)).ipus]
    tensor = 8 * 16 * 2
    # Kept are a stage's input and its checkpoints but the last, which its own backward pass doesn't read.
    assert found == [7 * 2 * tensor, 5 * 3 * tensor, 3 * 1 * tensor]
    in_8_bits = estimate(settings(3, stash_bytes_per_element=1)).ipus
    assert [2 * memory.always_live_components["stashes"] for memory in in_8_bits] == found


def test_without_a_pipeline_nothing_is_stashed():
    program = settings(3, execution="sharded", recompute=False)
    assert all(not memory.always_live_components["stashes"] for memory in estimate(program).ipus)


def test_recomputation_takes_less_than_keeping_everything():
    kept, again = estimate(settings(3, recompute=False)), estimate(settings(3))
    for more, less in zip(kept.ipus[:2], again.ipus[:2], strict=True):
        assert less.always_live_components["stashes"] < more.always_live_components["stashes"]


def test_what_comes_from_the_host_and_goes_there_has_buffers_where_it_is_used():
    streams = [memory.always_live_components["stream_buffers"] for memory in estimate(settings(3)).ipus]
    assert streams == [8 * 16 * 2 + 4, 0, 0]  # the input, and the loss in float32


def test_liveness_is_told_for_every_operation_and_weight_of_the_step():
    found = estimate(settings(3))
    for memory in found.ipus:
        points = [point for point in found.liveness if point.ipu == memory.ipu]
        phases = {point.phase for point in points}
        assert {"forward", "backward", "update"} <= phases
        assert max(point.live_bytes for point in points) == memory.peak_bytes
        assert min(point.live_bytes for point in points) >= memory.always_live_bytes
    updates = [point.label for point in found.liveness if point.phase == "update"]
    assert sorted(updates) == [f"layer{index}.weight" for index in range(7)]


def test_an_overflow_names_buffers_that_exceed_the_ipu_alone():
    roomy = estimate(settings(3))
    assert roomy.fits and not roomy.overflows
    tight = machine(bytes_per_tile=roomy.ipus[1].always_live_bytes // 16)
    found = estimate(settings(3), on=tight)
    assert not found.fits
    assert {overflow.ipu for overflow in found.overflows} == {
        memory.ipu for memory in found.ipus if memory.filled > 1
    }
    for overflow in found.overflows:
        usable = found.ipus[overflow.ipu].peak_bytes - overflow.over_bytes
        assert sum(buffer.bytes for buffer in overflow.buffers) > usable
        assert "layer" in overflow.moment


def test_a_working_set_counts_while_its_operation_runs():
    graph = chain(STAGES, WIDTHS)
    program = settings(3)
    stages = stages_of(graph, program)

    def only_products(op):
        if op.name != "mm" or op.phase != "forward":
            return OpCost("elementwise")
        return OpCost("matmul", working_set_bytes=10**9, rearranged_elements=7)

    plan = plans_of(graph, stages, program, WITHOUT_CODE, only_products)[1]
    live = plan.timeline.live_bytes()[COMPONENTS.index("matmul_working_set")]
    at_work = [
        event.label.startswith("mm") and event.phase in ("forward", "recompute")
        for event in plan.timeline.events
    ]
    assert live.tolist() == [10**9 * busy for busy in at_work]
    names = [lifetime.buffer.name for lifetime in plan.timeline.lifetimes]
    assert names.count("rearranged operands of mm") == sum(at_work)


def test_equal_layers_share_their_code():
    def code(widths) -> list[int]:
        graph, program = chain((0, 1, 0), widths), settings(2)
        constants = replace(CONSTANTS, code_bytes_per_call=0)
        found = memory_of(graph, stages_of(graph, program), program, machine(), constants)
        return [memory.components["code"] + memory.components["exchange_code"] for memory in found.ipus]

    three = code([[16], [16, 16, 16], [16]])
    assert code([[16], [16] * 6, [16]]) == three
    assert code([[16], [16, 32, 16], [16]])[1] > three[1]


def test_collectives_cost_exchange_code_where_weights_are():
    one, four, sixteen = (
        estimate(settings(3, replicas=replicas), CONSTANTS).ipus[1].components["exchange_code"]
        for replicas in (1, 4, 16)
    )
    assert one < four < sixteen and sixteen - four == four - one


@pytest.mark.parametrize("execution", ["pipelined", "sharded"])
def test_a_program_that_only_infers_keeps_its_weights_alone(execution):
    builder = Builder((0, 1))
    x, w = builder.tensor([8, 16], "input", "input/0"), builder.tensor([16, 16], "parameter", "w")
    y, z = builder.tensor([8, 16]), builder.tensor([8, 16])
    builder.op("mm", [x, w], [y])
    builder.stage = 1
    builder.op("relu", [y], [z])
    graph = builder.graph([x], [z])
    program = settings(2, optimizer=OptimizerSettings("adam", (4, 4)), execution=execution)
    found = memory_of(graph, stages_of(graph, program), program, machine(), WITHOUT_CODE)
    assert [memory.always_live_components["weights"] for memory in found.ipus] == [512, 0]
    for memory in found.ipus:
        for part in ("gradient_accumulators", "optimizer_state", "stashes", "recompute"):
            assert memory.components[part] == 0
    assert found.ipus[1].components["stream_buffers"] == 256


@pytest.mark.parametrize("seed", range(5))
def test_no_smaller_set_proves_it(seed):
    generator = random.Random(seed)
    buffers = [Buffer(f"b{i}", "temporary", "", generator.randrange(1, 100)) for i in range(10)]
    usable = generator.randrange(sum(buffer.bytes for buffer in buffers))
    proof = memory_model.overflow(3, "backward", buffers, usable)
    sizes = [buffer.bytes for buffer in proof.buffers]
    assert proof.ipu == 3 and proof.moment == "backward"
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) > usable
    assert proof.over_bytes == sum(buffer.bytes for buffer in buffers) - usable
    for few in itertools.combinations(buffers, len(sizes) - 1):
        assert sum(buffer.bytes for buffer in few) <= usable


def test_buffers_are_a_proof_only_where_no_size_is_assumed():
    def found(on, constants=CONSTANTS):
        graph = chain(STAGES, WIDTHS)
        program = settings(3)
        estimate = memory_of(graph, stages_of(graph, program), program, on, constants)
        return {overflow.ipu: overflow for overflow in estimate.overflows}

    # Code alone is too large: no proof.
    of_code = found(machine(bytes_per_tile=1_000_000))
    assert of_code and not any(overflow.is_proof for overflow in of_code.values())
    # Weights, state and stashes alone are too large, whatever the code: a proof, without code.
    tiny = found(machine(bytes_per_tile=64))
    assert tiny and all(overflow.is_proof for overflow in tiny.values())
    for overflow in tiny.values():
        assert sum(buffer.bytes for buffer in overflow.buffers) > 16 * 64 / CONSTANTS.tile_imbalance - 1
        assert not {"code", "exchange_code"} & {buffer.component for buffer in overflow.buffers}
        assert overflow.over_bytes > 25_000_000  # of everything, code included


def test_a_verdict_is_near_the_edge_if_a_quarter_of_the_code_decides():
    def filled(code: int, others: int):
        components = dict.fromkeys(COMPONENTS, 0) | {"code": code, "weights": others}
        total = code + others
        return IpuMemory(0, 1000, others, total, components, components, total, 1000)

    assert filled(400, 500).filled_band == (pytest.approx(0.8), pytest.approx(1.0))
    assert filled(400, 700).filled_band == (pytest.approx(1.0), pytest.approx(1.2))
    assert filled(0, 990).filled_band == (0.99, 0.99)
    assert filled(0, 0).filled_band == (0.0, 0.0)


def test_a_proof_has_no_buffer_whose_size_is_assumed() -> None:
    certain, assumed = Buffer("w", "weights", "", 7), Buffer("x", "code", "", 5)
    assert Overflow(2, "always", 1, (certain,)).is_proof
    assert not Overflow(2, "always", 1, (certain, assumed)).is_proof
    assert not Overflow(2, "always", 1, (Buffer("y", "matmul_working_set", "", 5),)).is_proof
    assert Overflow(2, "always", 1, (certain,)).memory == "IPU 2"
    assert Overflow(2, "always", 1, (certain,), m2000=0).memory == "the streaming memory of M2000 0"


def test_the_band_is_of_the_assumed_code_alone() -> None:
    """A quarter of 40 bytes of code is a tenth of 100."""
    parts = {"weights": 60, "code": 30, "exchange_code": 10}
    memory = IpuMemory(0, 1000, 0, 100, parts, {}, fullest_tile_bytes=80, tile_capacity_bytes=100)
    assert memory.code_bytes == 40
    assert memory.filled_band == pytest.approx((0.72, 0.88))
    assert memory.usable_bytes == 125
    without = IpuMemory(0, 1000, 0, 0, {}, {}, fullest_tile_bytes=0, tile_capacity_bytes=100)
    assert (without.code_bytes, without.filled_band, without.usable_bytes) == (0, (0.0, 0.0), 1000)


def test_a_program_of_as_many_cycles_as_micro_batches_is_no_pipeline() -> None:
    assert not Pipeline(3, 8, 1e-3, 0.0, 8e-3).pipelined
    assert (
        Pipeline(3, 12, 1e-3, 1 / 3, 12e-3).pipelined
        and Pipeline(3, 12, 1e-3, 1 / 3, 12e-3).micro_batches == 8
    )
