"""Time of a program: the work of its stages, its pipeline cycles (pipeline.py), and its weight update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping, Sequence

from ..environment import Target
from ..graph.ir import Graph, Op
from ..graph.stages import Stage
from .aliases import Materialised, materialised
from .constants import FRAMEWORK_FACTORS, Constants
from .ops import OpCost, op_cost
from .pipeline import StageWork, cycle_s, cycles_s, full_cycle, pipeline_cycles
from .settings import Settings
from .update import Update, update_of
from .verdict import Bound, Pipeline, StageTime, Work


@dataclass(frozen=True)
class Load:
    """Work of the fullest tile by cause, before constants convert it to seconds. Loads can be added."""

    matmul_cycles: float = 0.0
    vertex_cycles: float = 0.0
    compute_sets: float = 0.0
    rearranged_elements: float = 0.0
    flops: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.matmul_cycles + other.matmul_cycles,
            self.vertex_cycles + other.vertex_cycles,
            self.compute_sets + other.compute_sets,
            self.rearranged_elements + other.rearranged_elements,
            self.flops + other.flops,
        )

    def cycles(self, constants: Constants) -> float:
        return (
            constants.matmul_factor * self.matmul_cycles
            + self.vertex_cycles
            + constants.compute_set_cycles * self.compute_sets
            + constants.rearrangement_cycles * self.rearranged_elements
        )


@dataclass(frozen=True)
class StageLoad:
    """One stage's work in a cycle. `accumulation` adds weights' gradients to their accumulators."""

    stage: int
    ipu: int
    forward: Load
    recompute: Load
    backward: Load
    accumulation: Load
    stash: Load

    @property
    def total(self) -> Load:
        return self.forward + self.recompute + self.backward + self.accumulation + self.stash


def load_of(cost: OpCost, target: Target) -> Load:
    return Load(
        cost.matmul_cycles,
        cost.vertex_cycles,
        cost.compute_sets,
        (cost.rearranged_elements + cost.slow_elements) / target.tiles_per_ipu,
        cost.flops,
    )


def sum_of_loads(loads: Iterable[Load]) -> Load:
    """The sum, added in order."""
    matmul = vertex = sets = rearranged = 0.0
    flops = 0
    for load in loads:
        matmul += load.matmul_cycles
        vertex += load.vertex_cycles
        sets += load.compute_sets
        rearranged += load.rearranged_elements
        flops += load.flops
    return Load(matmul, vertex, sets, rearranged, flops)


def costs_of(
    graph: Graph, settings: Settings, target: Target, sizes: Materialised | None = None
) -> Mapping[int, OpCost]:
    """Costs by index of the operation. Sums of a weight's gradients are free: the accumulator adds them.

    `sizes`: of the graph's tensors, if known already.
    """
    sums = (sizes or materialised(graph)).sums if graph.training else frozenset()
    free = OpCost("view", rule="added by the accumulator")
    return {op.index: free if op.index in sums else op_cost(op, graph, settings, target) for op in graph.ops}


def stage_loads(
    graph: Graph,
    stages: Sequence[Stage],
    costs: Mapping[int, OpCost],
    settings: Settings,
    target: Target,
    constants: Constants,
) -> tuple[StageLoad, ...]:
    """The work of each stage, in order."""

    def sum_of(ops: Iterable[Op]) -> Load:
        return sum_of_loads(load_of(costs[op.index], target) for op in ops)

    accumulated = _accumulation(graph, target, constants)
    return tuple(
        StageLoad(
            stage=stage.index,
            ipu=stage.ipu,
            forward=sum_of(stage.forward),
            recompute=sum_of(stage.recompute),
            backward=sum_of(stage.backward),
            accumulation=accumulated.get(stage.index, Load()),
            stash=_stash(graph, stage, settings, target, constants),
        )
        for stage in stages
    )


def _accumulation(graph: Graph, target: Target, constants: Constants) -> dict[int, Load]:
    """By stage: each weight's gradient is added once, on the IPU that computes it."""
    loads: dict[int, Load] = {}
    for gradient in graph.gradients.values():
        owner = graph.owner(gradient)
        stage = graph.producers[owner.id].stage if owner.id in graph.producers else 0
        cycles = constants.accumulation_cycles * -(-owner.elements // target.tiles_per_ipu)
        loads[stage] = loads.get(stage, Load()) + Load(vertex_cycles=cycles, compute_sets=1)
    return loads


def _stash(graph: Graph, stage: Stage, settings: Settings, target: Target, constants: Constants) -> Load:
    """Each tensor is written to its ring buffer after the forward pass and read before the backward pass."""
    if settings.execution != "pipelined" or not stage.stash_slots:
        return Load()
    narrow = settings.stash_bytes_per_element == 1
    per_element = constants.stash_in_8_bits_cycles if narrow else constants.stash_cycles
    tensors = [graph.tensors[number] for number in stage.stashed]
    on_a_tile = sum(-(-tensor.elements // target.tiles_per_ipu) for tensor in tensors)
    compute_sets = 2 * len(tensors) * (2 if narrow else 1)
    return Load(vertex_cycles=2 * per_element * on_a_tile, compute_sets=compute_sets)


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of a weight update; in inference, of a call with `device_iterations` micro batches.

    :param flops_per_micro_batch: of products and convolutions, forward and backward, without recomputation.
    :param bounds: operations without a cost rule.
    :param numbers: names of the constants and hardware facts that it depends on.
    """

    pipeline: Pipeline
    step_s: float
    update_s: float
    host_s: float
    input_s: float
    stages: tuple[StageTime, ...]
    work: tuple[Work, ...]
    update_parts_s: Mapping[str, float]
    bounds: tuple[Bound, ...]
    numbers: frozenset[str]
    flops_per_micro_batch: int


@dataclass(frozen=True)
class Program:
    """Inputs of the time model besides constants.

    :param copied_bytes: bytes that each stage sends to other IPUs, forward and backward.
    :param input_bytes: from the host, for one micro batch.
    :param replicas: run in parallel, with `num_ipus` each.
    :param samples: of all replicas in a weight update, or in inference in a call.
    :param calls: calls from the host per timed unit: below 1 if a call makes several updates.
    """

    loads: tuple[StageLoad, ...]
    copied_bytes: tuple[tuple[int, int], ...]
    micro_batches: int
    input_bytes: int
    replicas: int
    num_ipus: int
    samples: int
    calls: float
    update: Update | None
    framework: str
    pipelined: bool
    training: bool

    @property
    def cycles_per_update(self) -> int:
        if not self.pipelined:
            return self.micro_batches
        return pipeline_cycles(self.micro_batches, len(self.loads), self.training)

    def work(self, target: Target, constants: Constants) -> tuple[StageWork, ...]:
        """Seconds of each stage. A stash is written in the forward pass and read in the backward pass."""
        second = self.framework_factor(constants) / target.clock_hz
        byte_s = self.framework_factor(constants) / target.ipu_link_bytes_per_s
        found = []
        for load, (forwards, backwards) in zip(self.loads, self.copied_bytes):
            stash = load.stash.cycles(constants) / 2
            found.append(
                StageWork(
                    load.ipu,
                    second * (load.forward.cycles(constants) + stash),
                    second * ((load.recompute + load.backward + load.accumulation).cycles(constants) + stash),
                    byte_s * forwards,
                    byte_s * backwards,
                )
            )
        return tuple(found)

    def framework_factor(self, constants: Constants) -> float:
        return constants.framework_factor(self.framework)

    def cycle_s(self, target: Target, constants: Constants) -> float:
        """A cycle in which all stages are busy; without a pipeline, one micro batch through all stages."""
        overhead_s = self.framework_factor(constants) * constants.cycle_overhead_s
        work = self.work(target, constants)
        if self.pipelined:
            return cycle_s(work, full_cycle(len(work)), overhead_s)
        return sum(map(_alone_s, work)) + overhead_s

    def cycles_s(self, target: Target, constants: Constants) -> float:
        """All cycles of a weight update, or in inference of a call."""
        if not self.pipelined:
            return self.micro_batches * self.cycle_s(target, constants)
        overhead_s = self.framework_factor(constants) * constants.cycle_overhead_s
        return cycles_s(self.work(target, constants), self.micro_batches, self.training, overhead_s)

    def update_s(self, target: Target, constants: Constants) -> float:
        return sum(self.update.parts_s(target, constants).values()) if self.update else 0.0

    def host_s(self, target: Target, constants: Constants) -> float:
        """Seconds that the IPUs wait for the host: a call's start, PopTorch's work on its samples, inputs."""
        exposed_s = self.exposed_input_s(target, constants)
        return constants.call_overhead_s * self.calls + self.batching_s(constants) + exposed_s

    def exposed_input_s(self, target: Target, constants: Constants) -> float:
        """Inputs arrive while the IPUs compute: seconds that those of all micro batches take beyond that."""
        return max(0.0, self.input_s(target) - self.cycles_s(target, constants))

    def input_s(self, target: Target) -> float:
        """The inputs of all micro batches. Replicas share the host links of their M2000s."""
        m2000s = -(-self.replicas * self.num_ipus // target.ipus_per_m2000)
        all_bytes = self.replicas * self.micro_batches * self.input_bytes
        return all_bytes / (m2000s * target.host_bytes_per_s)

    def batching_s(self, constants: Constants) -> float:
        """PopTorch's work on the host for each sample and replica of a weight update."""
        if self.framework != "PopTorch":
            return 0.0
        of_sample_s = constants.poptorch_sample_s + self.replicas * constants.poptorch_sample_of_replica_s
        return self.samples * of_sample_s

    def step_s(self, target: Target, constants: Constants) -> float:
        return (
            self.cycles_s(target, constants)
            + self.update_s(target, constants)
            + self.host_s(target, constants)
        )


def program_of(
    graph: Graph,
    stages: Sequence[Stage],
    settings: Settings,
    target: Target,
    constants: Constants,
    costs: Mapping[int, OpCost] | None = None,
) -> Program:
    """The program of a graph with these settings on this machine."""
    costs = costs_of(graph, settings, target) if costs is None else costs
    micro_batches = settings.gradient_accumulation if graph.training else settings.device_iterations
    return Program(
        loads=stage_loads(graph, stages, costs, settings, target, constants),
        copied_bytes=tuple(_sent_bytes(graph, stages, stage) for stage in stages),
        micro_batches=micro_batches,
        input_bytes=sum(graph.tensors[number].bytes for number in graph.inputs),
        replicas=settings.replicas,
        num_ipus=graph.num_ipus,
        samples=settings.micro_batch_size * micro_batches * settings.replicas,
        calls=1 / settings.device_iterations if graph.training else 1.0,
        update=update_of(graph, stages, settings, target, constants),
        framework=settings.framework,
        pipelined=settings.execution == "pipelined",
        training=graph.training,
    )


def _alone_s(work: StageWork) -> float:
    """Seconds of a stage that runs alone, without a pipeline."""
    return work.forward_s + work.backward_s + work.sending_s + work.sending_back_s


def time_of(
    graph: Graph,
    stages: Sequence[Stage],
    settings: Settings,
    target: Target,
    constants: Constants,
    sizes: Materialised | None = None,
) -> TimeEstimate:
    """The time of a graph on a machine, by part. `sizes`: of its tensors, if known already."""
    costs = costs_of(graph, settings, target, sizes)
    program = program_of(graph, stages, settings, target, constants, costs)
    framework = constants.framework_factor(settings.framework)
    cycles = program.cycles_per_update
    return TimeEstimate(
        pipeline=Pipeline(
            forward_stages=len(stages),
            pipeline_cycles_per_update=cycles,
            cycle_s=program.cycle_s(target, constants),
            cycles_s=program.cycles_s(target, constants),
            bubble_fraction=1 - program.micro_batches / cycles,
        ),
        step_s=program.step_s(target, constants),
        update_s=program.update_s(target, constants),
        host_s=program.host_s(target, constants),
        input_s=program.input_s(target) + program.batching_s(constants),
        stages=tuple(
            _stage_time(load, sent, framework, target, constants)
            for load, sent in zip(program.loads, program.copied_bytes)
        ),
        work=_work(graph, stages, costs, program, target, constants),
        update_parts_s=program.update.parts_s(target, constants) if program.update else {},
        bounds=_bounds(graph, costs, target, constants),
        numbers=_numbers(graph, costs, program, settings, target, constants),
        flops_per_micro_batch=sum(costs[op.index].flops for op in graph.ops),
    )


def _numbers(
    graph: Graph,
    costs: Mapping[int, OpCost],
    program: Program,
    settings: Settings,
    target: Target,
    constants: Constants,
) -> frozenset[str]:
    """Names of the numbers that affect this program's time: its framework, and links only if used."""
    names = {"cycle_overhead_s", "call_overhead_s", "clock_hz", "tiles_per_ipu"}
    names.update(*(costs[op.index].numbers for op in graph.ops))
    total = sum((load.total for load in program.loads), Load())
    stash = any(load.stash.vertex_cycles for load in program.loads)
    links = ("link_bytes_per_s", "links_between_ipus", "link_efficiency")
    for acts, numbers in (
        (total.matmul_cycles, ("matmul_factor",)),
        (total.compute_sets, ("compute_set_cycles",)),
        (total.rearranged_elements, ("rearrangement_cycles",)),
        (graph.gradients, ("accumulation_cycles",)),
        (stash, ("stash_in_8_bits_cycles" if settings.stash_bytes_per_element == 1 else "stash_cycles",)),
        (any(map(any, program.copied_bytes)), links),
        (program.input_bytes, ("host_bytes_per_s",)),
        (program.input_bytes and program.replicas * program.num_ipus > 1, ("ipus_per_m2000",)),
        (program.framework == "PopTorch", ("poptorch_sample_s", "poptorch_sample_of_replica_s")),
    ):
        if acts:
            names.update(numbers)
    names.update(program.update.numbers(target) if program.update else ())
    factor = FRAMEWORK_FACTORS[program.framework]
    return frozenset(names | ({factor} if factor else set()))


def _sent_bytes(graph: Graph, stages: Sequence[Stage], stage: Stage) -> tuple[int, int]:
    """Activations sent to the next stage and gradients to the previous one, if they are on other IPUs."""
    sent = []
    for numbers, neighbour in (
        (stage.sends_forward, stage.index + 1),
        (stage.sends_backward, stage.index - 1),
    ):
        elsewhere = 0 <= neighbour < len(stages) and stages[neighbour].ipu != stage.ipu
        sent.append(sum(graph.tensors[number].bytes for number in numbers) if elsewhere else 0)
    return sent[0], sent[1]


def _stage_time(
    load: StageLoad, sent: tuple[int, int], framework: float, target: Target, constants: Constants
) -> StageTime:
    def seconds(of: Load) -> float:
        return framework * of.cycles(constants) / target.clock_hz

    return StageTime(
        stage=load.stage,
        ipu=load.ipu,
        forward_s=seconds(load.forward),
        recompute_s=seconds(load.recompute),
        backward_s=seconds(load.backward + load.accumulation),
        stash_s=seconds(load.stash),
        copies_s=framework * sum(sent) / target.ipu_link_bytes_per_s,
        copies_back_s=framework * sent[1] / target.ipu_link_bytes_per_s,
    )


def _work(
    graph: Graph,
    stages: Sequence[Stage],
    costs: Mapping[int, OpCost],
    program: Program,
    target: Target,
    constants: Constants,
) -> tuple[Work, ...]:
    """Cycles of one pipeline cycle by module, operation and phase, costliest first."""
    sums: dict[tuple[int, int, str, str, str, str], tuple[float, int, int]] = {}

    def add(stage: Stage, phase: str, op: Op) -> None:
        cost = costs[op.index]
        cycles = load_of(cost, target).cycles(constants)
        if cost.kind != "view":
            key = (stage.ipu, stage.index, phase, op.module, op.name, cost.kind)
            before = sums.get(key, (0.0, 0, 0))
            sums[key] = (before[0] + cycles, before[1] + 1, before[2] + cost.flops)

    for stage, load in zip(stages, program.loads):
        for phase, ops in (
            ("forward", stage.forward),
            ("recompute", stage.recompute),
            ("backward", stage.backward),
        ):
            for op in ops:
                add(stage, phase, op)
        for name, extra in (("gradient accumulation", load.accumulation), ("stash", load.stash)):
            if extra.cycles(constants):
                key = (stage.ipu, stage.index, "backward", "", name, name)
                sums[key] = (extra.cycles(constants), int(extra.compute_sets), 0)
    work = [
        Work(ipu, stage_index, phase, module, op_name, kind, cycles, count, flops)
        for (ipu, stage_index, phase, module, op_name, kind), (cycles, count, flops) in sums.items()
    ]
    return tuple(sorted(work, key=lambda entry: -entry.cycles))


def _bounds(
    graph: Graph, costs: Mapping[int, OpCost], target: Target, constants: Constants
) -> tuple[Bound, ...]:
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for op in graph.ops:
        cost = costs[op.index]
        if not cost.known:
            count, cycles = sums.get((op.name, op.module), (0, 0.0))
            sums[op.name, op.module] = (count + 1, cycles + load_of(cost, target).cycles(constants))
    return tuple(Bound(name, module, count, cycles) for (name, module), (count, cycles) in sums.items())
