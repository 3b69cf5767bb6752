"""Time: the pipeline, compared with an event simulation; lower bounds; and monotonicity."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from ipu_simulator.cost.constants import constants
from ipu_simulator.cost.ops import op_cost
from ipu_simulator.cost.pipeline import StageWork, cycle_s, cycles_s, full_cycle, pipeline_cycles
from ipu_simulator.cost.time import Load, load_of, program_of, time_of
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import stages_of
from torch.utils.flop_counter import FlopCounterMode

from model import PRESETS, PretrainingModel
from tests.ipu_simulator.cost.graphs import chain
from tests.ipu_simulator.cost.graphs import settings as of_chain
from tests.ipu_simulator.cost.programs import program

# In one process, which captures each program once.
pytestmark = pytest.mark.xdist_group("programs")

BOW = target("bow-pod16")
MODELS = ["bert-medium", "groupbert-medium"]


def estimate(graph, settings, machine=BOW):
    return time_of(graph, stages_of(graph, settings), settings, machine, constants())


def by_events(stages, micro_batches, training=True):
    """(seconds, cycles) until every micro batch has passed `stages`, played micro batch by micro batch.

    Each micro batch takes one stage a cycle, forward and back; the last stage does both in one cycle. A cycle
    ends when the slowest busy IPU and the slowest sender are done.
    """
    last = len(stages) - 1
    path = [[("forward", stage)] for stage in range(last)]
    path.append([("forward", last), ("backward", last)] if training else [("forward", last)])
    path += [[("backward", stage)] for stage in reversed(range(last))] if training else []
    waiting, on_the_way, seconds, cycle = micro_batches, [], 0.0, 0
    while waiting or on_the_way:
        if waiting:
            on_the_way.append(0)
            waiting -= 1
        computing, sending = {}, {}
        for position in on_the_way:
            for phase, index in path[position]:
                stage = stages[index]
                work = (stage.forward_s, stage.sending_s)
                if phase == "backward":
                    work = (stage.backward_s, stage.sending_back_s)
                computing[stage.ipu] = computing.get(stage.ipu, 0.0) + work[0]
                sending[stage.ipu] = sending.get(stage.ipu, 0.0) + work[1]
        seconds += max(computing.values()) + max(sending.values())
        on_the_way = [position + 1 for position in on_the_way if position + 1 < len(path)]
        cycle += 1
    return seconds, cycle


def uneven(ipus):
    """Stages of which each could be the slowest one, depending on which are busy."""
    return [
        StageWork(ipu, 1.0 + 0.3 * (index % 3), 2.0 - 0.4 * (index % 4), 0.1 * index, 0.2 / (1 + index))
        for index, ipu in enumerate(ipus)
    ]


@pytest.mark.parametrize("ipus", [(0,), (0, 1), (0, 1, 0), (0, 1, 2, 3, 0), (0, 1, 0, 1, 2), tuple(range(9))])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 8, 9, 17, 64])
@pytest.mark.parametrize("training", [True, False])
def test_cycles_are_those_of_a_simulation_by_events(ipus, micro_batches, training):
    stages = uneven(ipus)
    seconds, cycles = by_events(stages, micro_batches, training)
    assert pipeline_cycles(micro_batches, len(ipus), training) == cycles
    assert cycles_s(stages, micro_batches, training, 0.0) == pytest.approx(seconds, rel=1e-12)
    assert cycles_s(stages, micro_batches, training, 0.25) == pytest.approx(seconds + 0.25 * cycles)
    # One more micro batch costs a whole cycle as soon as all stages are busy together.
    if micro_batches > cycles - micro_batches:
        whole_s = cycle_s(stages, full_cycle(len(ipus), training), 0.0)
        more_s = cycles_s(stages, micro_batches + 1, training, 0.0)
        assert more_s - seconds == pytest.approx(whole_s)


def test_a_pipeline_of_one_direction():
    assert pipeline_cycles(20, 4, training=False) == 23


@pytest.mark.parametrize("model", MODELS)
def test_the_cycle_is_that_of_the_busiest_ipu(model):
    graph, settings = program(model, layers_per_ipu=(0, 2, 4, 2))
    found = estimate(graph, settings)
    seconds = {}
    for stage in found.stages:
        total = stage.forward_s + stage.recompute_s + stage.backward_s + stage.stash_s
        seconds[stage.ipu] = seconds.get(stage.ipu, 0.0) + total
    assert max(seconds, key=seconds.get) == 2
    factor = constants().poptorch_factor
    between = max(sum(stage.copies_s for stage in found.stages if stage.ipu == ipu) for ipu in range(4))
    expected = seconds[2] + between + factor * constants().cycle_overhead_s
    assert found.pipeline.cycle_s == pytest.approx(expected)
    assert found.pipeline.forward_stages == 5
    assert found.pipeline.pipeline_cycles_per_update == 16 + 8
    assert found.pipeline.bubble_fraction == pytest.approx(8 / 24)
    assert found.step_s == pytest.approx(found.pipeline.cycles_s + found.update_s + found.host_s)
    # Of 24 cycles, 8 have all 5 stages busy; the others last at least as long as one layer's stage.
    assert 8 * expected < found.pipeline.cycles_s < 24 * expected
    assert found.update_s == pytest.approx(sum(found.update_parts_s.values()))


@pytest.mark.parametrize("model", MODELS)
def test_work_adds_up_to_the_stages(model):
    graph, settings = program(model)
    found = estimate(graph, settings)
    stages = stages_of(graph, settings)
    loads = program_of(graph, stages, settings, BOW, constants()).loads
    flops = sum(load.forward.flops + load.backward.flops for load in loads)
    assert flops == found.flops_per_micro_batch
    for stage in found.stages:
        seconds = stage.forward_s + stage.recompute_s + stage.backward_s + stage.stash_s
        cycles = sum(work.cycles for work in found.work if work.stage == stage.stage)
        assert constants().poptorch_factor * cycles / BOW.clock_hz == pytest.approx(seconds)


@pytest.mark.parametrize("model", MODELS)
def test_forward_flops_are_torchs(model):
    """Forward only: torch's counter takes the backward pass of grouped convolutions for a dense one."""
    graph, settings = program(model)
    counted = sum(op_cost(op, graph, settings, BOW).flops for op in graph.ops if op.phase == "forward")
    preset = PRESETS[model.replace("-", "_")]
    with torch.device("meta"):
        network = PretrainingModel(replace(preset, hidden_dropout=0.0)).float()
        batch = [torch.zeros(2, 128, dtype=torch.int64)] * 3
        batch += [torch.zeros(2, 20, dtype=torch.int64)] * 2 + [torch.zeros(2, dtype=torch.int64)]
        with FlopCounterMode(display=False) as counter:
            network(*batch)
    assert counted == counter.get_total_flops()
    # A product has two gradients of the same cost each.
    found = estimate(graph, settings)
    assert found.flops_per_micro_batch == 3 * counted


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layers_per_ipu", [(0, 2, 3, 3), (8, 0, 0, 0)])
def test_never_below_the_roofline_or_the_critical_path(model, layers_per_ipu):
    graph, settings = program(model, layers_per_ipu=layers_per_ipu)
    settings = replace(settings, framework="PopART")
    found = estimate(graph, settings)
    micro_batches, ipus = settings.gradient_accumulation, graph.num_ipus
    at_peak = found.flops_per_micro_batch * micro_batches / (BOW.peak_flops_per_s * ipus)
    assert found.step_s > at_peak
    # One micro batch through all stages, and the busiest IPU's work for all of them.
    through = sum(stage.forward_s + stage.backward_s for stage in found.stages)
    assert found.step_s > through
    of_ipu = {}
    for stage in found.stages:
        of_ipu[stage.ipu] = (
            of_ipu.get(stage.ipu, 0.0) + stage.forward_s + stage.recompute_s + stage.backward_s
        )
    assert found.step_s > micro_batches * max(of_ipu.values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("key", "factors"),
    [
        ("tiles_per_ipu", (0.5, 0.9, 1.0)),
        ("bytes_per_tile", (1.0, 1.5, 2.0)),
        ("clock_hz", (0.5, 1.0, 2.0)),
        ("exchange_bytes_per_cycle", (0.5, 1.0, 2.0)),
        ("shared_exchange_bytes_per_cycle", (1.0, 2.0)),
        ("link_bytes_per_s", (0.1, 1.0, 10.0)),
        ("streaming_memory_bytes_per_s", (0.1, 1.0, 10.0)),
        ("host_bytes_per_s", (0.0001, 0.001, 10.0)),
    ],
)
def test_a_better_machine_is_never_slower(model, key, factors):
    graph, settings = program(model, matmul_proportion=(0.6,) * 4)
    seconds = []
    for factor in factors:
        value = getattr(BOW, key)
        seconds.append(estimate(graph, settings, replace(BOW, **{key: type(value)(value * factor)})).step_s)
    assert seconds == sorted(seconds, reverse=True)
    assert key in ("bytes_per_tile",) or seconds[0] > seconds[-1]


def test_more_work_takes_longer():
    base = estimate(*program("bert-medium")).step_s
    for change in (
        {"micro_batch_size": 4},
        {"sequence_length": 256},
        {"gradient_accumulation": 32},
        {"layers_per_ipu": (0, 1, 3, 4)},
    ):
        assert estimate(*program("bert-medium", **change)).step_s > base, change


def test_a_call_returns_to_the_host_once():
    graph, settings = program("bert-medium")
    often = replace(settings, device_iterations=10)
    once_s, tenth_s = (estimate(graph, each).host_s for each in (settings, often))
    assert once_s - tenth_s == pytest.approx(0.9 * constants().call_overhead_s)


def test_inputs_arrive_while_the_ipus_compute():
    """Only what exceeds the cycles counts; four replicas of one IPU share the host link of an M2000."""
    graph, settings = program("bert-medium", layers_per_ipu=(8,), matmul_proportion=(0.2,))
    waiting = []
    for replicas, rate in ((1, BOW.host_bytes_per_s), (1, 1e3), (4, 1e3), (8, 1e3)):
        each = replace(settings, replicas=replicas, execution="sharded", framework="PopART")
        machine = replace(BOW, host_bytes_per_s=rate)
        made = program_of(graph, stages_of(graph, each), each, machine, constants())
        inputs_s = min(replicas, 4) * made.micro_batches * made.input_bytes / rate
        host_s = made.host_s(machine, constants())
        assert host_s == pytest.approx(
            constants().call_overhead_s + max(0.0, inputs_s - made.cycles_s(machine, constants()))
        )
        waiting.append(host_s > constants().call_overhead_s)
    assert waiting == [False, True, True, True]


def test_poptorchs_host_works_on_samples_and_replicas():
    """0.3 s at 4 replicas, 0.45 s at 16, for batches of 65,536 samples."""
    graph, settings = program("bert-medium")
    for replicas, seconds in ((4, 0.3), (16, 0.45)):
        each = replace(
            settings,
            micro_batch_size=16,
            gradient_accumulation=65536 // 16 // replicas,
            replicas=replicas,
            framework="PopTorch",
        )
        made = program_of(graph, stages_of(graph, each), each, target("bow-pod64"), constants())
        assert made.batching_s(constants()) == pytest.approx(seconds, rel=0.02)
        popart = replace(each, framework="PopART")
        assert (
            program_of(graph, stages_of(graph, popart), popart, BOW, constants()).batching_s(constants()) == 0
        )


def test_without_a_pipeline_stages_take_turns():
    graph, settings = program("bert-medium")
    sharded = replace(settings, execution="sharded")
    found = estimate(graph, sharded)
    stages = sum(
        stage.forward_s + stage.recompute_s + stage.backward_s + stage.copies_s for stage in found.stages
    )
    assert found.pipeline.pipeline_cycles_per_update == settings.gradient_accumulation
    assert found.pipeline.cycle_s == pytest.approx(
        stages + constants().poptorch_factor * constants().cycle_overhead_s
    )
    assert all(stage.stash_s == 0 for stage in found.stages)
    assert found.step_s > estimate(graph, settings).step_s


def test_a_stash_in_8_bits_costs_casts():
    graph, settings = program("bert-medium")
    narrow = replace(settings, stash_bytes_per_element=1)
    wide_s, narrow_s = (
        [stage.stash_s for stage in estimate(graph, one).stages] for one in (settings, narrow)
    )
    assert all(a < b for a, b in zip(wide_s[:-1], narrow_s[:-1]))
    assert wide_s[-1] == narrow_s[-1] == 0


def test_constants_act_where_they_say():
    graph, settings = program("bert-medium")
    stages, shipped = stages_of(graph, settings), constants()
    made = program_of(graph, stages, settings, BOW, shipped)
    base = made.step_s(BOW, shipped)
    for name, sign in (
        ("matmul_factor", 1),
        ("compute_set_cycles", 1),
        ("rearrangement_cycles", 1),
        ("poptorch_factor", 1),
        ("collective_latency_s", 1),
        ("tf1_factor", 0),
    ):
        other = made.step_s(BOW, replace(shipped, **{name: 1.1 * getattr(shipped, name)}))
        assert (other > base) - (other < base) == sign, name
    assert shipped.framework_factor("PopART") == 1


def test_operations_without_a_rule_are_named_and_bounded():
    graph, settings = program("bert-medium")
    strange = replace(
        graph, ops=tuple(replace(op, name="zeta") if op.name == "gelu" else op for op in graph.ops)
    )
    found = estimate(strange, settings)
    assert {bound.op for bound in found.bounds} == {"zeta"}
    modules = {bound.module for bound in found.bounds}
    assert "encoder.layers.3.feed_forward.body" in modules
    op = next(op for op in strange.ops if op.name == "zeta")
    known = op_cost(next(op for op in graph.ops if op.name == "gelu"), graph, settings, BOW)
    bound = op_cost(op, strange, settings, BOW)
    assert not bound.known and bound.vertex_cycles > known.vertex_cycles
    assert load_of(bound, BOW).cycles(constants()) < inf
    assert found.step_s > estimate(graph, settings).step_s


def test_our_models_have_rules_for_all_their_operations():
    for model in MODELS:
        assert estimate(*program(model)).bounds == ()


def test_only_tensors_for_another_ipu_take_the_links():
    """The second and third stages are on one IPU: what passes between them stays there."""
    graph = chain((0, 1, 1, 0), [[64], [32], [16], [8]])
    each = of_chain(2)
    made = program_of(graph, stages_of(graph, each), each, BOW, constants())
    wide, narrow = 8 * 64 * 2, 8 * 16 * 2  # float16 activations [8, 64] and [8, 16]
    assert made.copied_bytes == ((wide, 0), (0, wide), (narrow, 0), (0, narrow))


@pytest.mark.parametrize(("narrow", "compute_sets"), [(False, 4), (True, 8)])
def test_a_stash_is_written_and_read_by_the_fullest_tile(narrow, compute_sets):
    """x [8, 256] and y [8, 64]: on 1472 tiles the fullest one has 2 and 1. Casts double the steps."""
    graph = chain((0, 1), [[64], [64]])
    first = next(tensor for tensor in graph.tensors if tensor.role == "input")
    graph = replace(
        graph, tensors=tuple(replace(t, shape=(8, 256)) if t == first else t for t in graph.tensors)
    )
    each = of_chain(2, recompute=False, stash_bytes_per_element=1 if narrow else None)
    known = constants()
    made = program_of(graph, stages_of(graph, each), each, BOW, known)
    per_element = known.stash_in_8_bits_cycles if narrow else known.stash_cycles
    assert BOW.tiles_per_ipu == 1472
    assert made.loads[0].stash == Load(vertex_cycles=2 * 3 * per_element, compute_sets=compute_sets)
    assert made.loads[1].stash == Load()


def test_a_time_depends_on_the_hosts_link_only_with_inputs():
    graph = chain((0, 1), [[64], [64]])
    for inputs, ipus, hosts in (
        (graph.inputs, (0, 1), {"host_bytes_per_s", "ipus_per_m2000"}),
        (graph.inputs, (0, 0), {"host_bytes_per_s"}),
        ((), (0, 1), set()),
    ):
        one = replace(graph, inputs=inputs, stage_ipus=ipus)
        each = of_chain(2)
        numbers = time_of(one, stages_of(one, each), each, BOW, constants()).numbers
        assert numbers & {"host_bytes_per_s", "ipus_per_m2000"} == hosts
