"""How long a program takes: its pipeline, cycle by cycle, and its weight update.

All IPUs of a replica work side by side and wait for each other after every pipeline cycle; then all copies
between them happen at once. So a cycle lasts as long as the busiest IPU, with all stages that it holds, and
N = G + 2F - 2 cycles make a weight update of G micro batches through F forward stages (PopART's pipelining).
Cycles of filling and emptying count as full. Without a pipeline, stages take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from ..graph.ir import Graph, Op
from ..graph.stages import Stage
from ..report.verdict import Assumption, Bound, Pipeline, StageTime, Work
from ..targets import Target
from .constants import Constants, assumptions
from .load import Load, StageLoad, costs_of, load_of, stage_loads
from .op_cost import OpCost
from .settings import Settings
from .update import Update, update_of


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of a weight update; where nothing is trained, of a call of `device_iterations` micro batches.

    :param flops_per_micro_batch: of products and convolutions, forward and backward, nothing computed again.
    :param bounds: operations without a rule.
    """

    pipeline: Pipeline
    step_s: float
    update_s: float
    host_s: float
    stages: tuple[StageTime, ...]
    work: tuple[Work, ...]
    update_parts_s: Mapping[str, float]
    bounds: tuple[Bound, ...]
    assumptions: tuple[Assumption, ...]
    flops_per_micro_batch: int


@dataclass(frozen=True)
class Program:
    """What time depends on beside constants.

    :param copied_bytes: sent between IPUs in a cycle by the one that sends most; by each stage.
    :param input_bytes: from the host, for one micro batch.
    :param replicas: side by side, each of `num_ipus`.
    :param calls: from the host, for what is timed: below 1 where a call makes several updates.
    """

    loads: tuple[StageLoad, ...]
    copied_bytes: tuple[int, ...]
    cycles_per_update: int
    micro_batches: int
    input_bytes: int
    replicas: int
    num_ipus: int
    calls: float
    update: Update | None
    framework: str
    pipelined: bool

    def busiest(self, target: Target, constants: Constants) -> float:
        """Seconds of compute in a cycle: of the busiest IPU, or of all stages in turn."""
        of_ipu: dict[int, Load] = {}
        for load in self.loads:
            of_ipu[load.ipu] = of_ipu.get(load.ipu, Load()) + load.total
        cycles = [load.cycles(constants) for load in of_ipu.values()]
        return (max(cycles) if self.pipelined else sum(cycles)) / target.clock_hz

    def copies_s(self, target: Target) -> float:
        of_ipu: dict[int, int] = {}
        for load, sent in zip(self.loads, self.copied_bytes):
            of_ipu[load.ipu] = of_ipu.get(load.ipu, 0) + sent
        sent_bytes = max(of_ipu.values()) if self.pipelined else sum(of_ipu.values())
        return sent_bytes / target.ipu_link_bytes_per_s

    def cycle_s(self, target: Target, constants: Constants) -> float:
        framework = constants.framework_factor(self.framework)
        work = self.busiest(target, constants) + self.copies_s(target)
        return framework * (work + constants.cycle_overhead_s)

    def update_s(self, target: Target, constants: Constants) -> float:
        return sum(self.update.parts_s(target, constants).values()) if self.update else 0.0

    def host_s(self, target: Target, constants: Constants) -> float:
        """The return to the host, and inputs of all micro batches.

        Replicas share the ways of their M2000s to the host.
        """
        m2000s = -(-self.replicas * self.num_ipus // target.ipus_per_m2000)
        all_bytes = self.replicas * self.micro_batches * self.input_bytes
        inputs_s = all_bytes / (m2000s * target.host_bytes_per_s)
        return constants.call_overhead_s * self.calls + inputs_s

    def step_s(self, target: Target, constants: Constants) -> float:
        cycles = self.cycles_per_update * self.cycle_s(target, constants)
        return cycles + self.update_s(target, constants) + self.host_s(target, constants)


def program_of(
    graph: Graph,
    stages: Sequence[Stage],
    settings: Settings,
    target: Target,
    constants: Constants,
    costs: Mapping[int, OpCost] | None = None,
) -> Program:
    """What a graph takes, with these settings, on this machine."""
    costs = costs_of(graph, settings, target) if costs is None else costs
    pipelined = settings.execution == "pipelined"
    micro_batches = settings.gradient_accumulation if graph.training else settings.device_iterations
    return Program(
        loads=stage_loads(graph, stages, costs, settings, target, constants),
        copied_bytes=tuple(_sent_bytes(graph, stages, stage) for stage in stages),
        cycles_per_update=pipeline_cycles(micro_batches, len(stages), graph.training)
        if pipelined
        else micro_batches,
        micro_batches=micro_batches,
        input_bytes=sum(graph.tensors[number].bytes for number in graph.inputs),
        replicas=settings.replicas,
        num_ipus=graph.num_ipus,
        calls=1 / settings.device_iterations if graph.training else 1.0,
        update=update_of(graph, stages, settings, target, constants),
        framework=settings.framework,
        pipelined=pipelined,
    )


def pipeline_cycles(micro_batches: int, forward_stages: int, training: bool = True) -> int:
    """Cycles in which all micro batches pass: through 2F - 1 stages forth and back, or F forth only."""
    stages = 2 * forward_stages - 1 if training else forward_stages
    return micro_batches + stages - 1


def time_of(
    graph: Graph, stages: Sequence[Stage], settings: Settings, target: Target, constants: Constants
) -> TimeEstimate:
    """The time of a graph on a machine, and where it goes."""
    costs = costs_of(graph, settings, target)
    program = program_of(graph, stages, settings, target, constants, costs)
    framework = constants.framework_factor(settings.framework)
    cycles = program.cycles_per_update
    return TimeEstimate(
        pipeline=Pipeline(
            forward_stages=len(stages),
            pipeline_cycles_per_update=cycles,
            cycle_s=program.cycle_s(target, constants),
            bubble_fraction=1 - program.micro_batches / cycles,
        ),
        step_s=program.step_s(target, constants),
        update_s=program.update_s(target, constants),
        host_s=program.host_s(target, constants),
        stages=tuple(
            _stage_time(load, sent, framework, target, constants)
            for load, sent in zip(program.loads, program.copied_bytes)
        ),
        work=_work(graph, stages, costs, program, target, constants),
        update_parts_s=program.update.parts_s(target, constants) if program.update else {},
        bounds=_bounds(graph, costs, target, constants),
        assumptions=assumptions(),
        flops_per_micro_batch=sum(costs[op.index].flops for op in graph.ops),
    )


def _sent_bytes(graph: Graph, stages: Sequence[Stage], stage: Stage) -> int:
    """Activations to the next stage and gradients to the one before, where these are other IPUs."""
    sent = 0
    for numbers, neighbour in (
        (stage.sends_forward, stage.index + 1),
        (stage.sends_backward, stage.index - 1),
    ):
        if 0 <= neighbour < len(stages) and stages[neighbour].ipu != stage.ipu:
            sent += sum(graph.tensors[number].bytes for number in numbers)
    return sent


def _stage_time(
    load: StageLoad, sent_bytes: int, framework: float, target: Target, constants: Constants
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
        copies_s=framework * sent_bytes / target.ipu_link_bytes_per_s,
    )


def _work(
    graph: Graph,
    stages: Sequence[Stage],
    costs: Mapping[int, OpCost],
    program: Program,
    target: Target,
    constants: Constants,
) -> tuple[Work, ...]:
    """Cycles of one pipeline cycle by module, operation and phase, dearest first."""
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
