"""A published row as a program of ours: the graph that the application would run in that configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Sequence

from ipu_simulator.cost.constants import Constants, constants
from ipu_simulator.cost.settings import Settings
from ipu_simulator.cost.time import Program, program_of
from ipu_simulator.graph.ir import Graph
from ipu_simulator.graph.stages import stages_of
from ipu_simulator.targets import Target, target
from .rows import COLUMNS, Row, RowError


@dataclass(frozen=True)
class Measured:
    """A row and what the model needs to predict it.

    :param flops: of one weight update, products and convolutions alone, nothing computed again.
    """

    row: Row
    target: Target
    program: Program
    flops: float

    def predicted_s(self, values: Constants) -> float:
        return self.program.step_s(self.target, values)

    @property
    def at_peak_s(self) -> float:
        """Seconds if all IPUs computed nothing but the row's FLOPs, at their peak."""
        ipus = len(self.row.layers_per_ipu) * self.row.replication_factor
        return self.flops / (self.target.peak_flops_per_s * ipus)


def measured(rows: Sequence[Row]) -> tuple[list[Measured], list[RowError]]:
    """The programs of rows, and why there is none for the others."""
    programs: list[Measured] = []
    faults: list[RowError] = []
    for row in rows:
        try:
            programs.append(_measured(row))
        except RowError as fault:
            faults.append(fault)
    return programs, faults


def _measured(row: Row) -> Measured:
    """Raises RowError for what a program can't be made of."""
    machine = target(row.target)
    needed = len(row.layers_per_ipu) * row.replication_factor
    if needed > machine.num_ipus:
        raise row.error(
            "replication_factor",
            f"{row.replication_factor} replicas of {len(row.layers_per_ipu)} IPUs need {needed}, but "
            f"{row.target} has {machine.num_ipus}",
        )
    graph, settings = _program(row)
    stages = stages_of(graph, settings)
    least = 2 * len(stages) - 1
    if row.gradient_accumulation < least:
        raise row.error(
            "gradient_accumulation",
            f"{row.gradient_accumulation} cannot fill the pipeline, which needs {least}",
        )
    program = program_of(graph, stages, settings, machine, constants())
    micro_batches = row.gradient_accumulation * row.replication_factor
    flops = sum(load.forward.flops + load.backward.flops for load in program.loads)
    return Measured(row, machine, program, float(flops) * micro_batches)


def _program(row: Row) -> tuple[Graph, Settings]:
    import dry_run as application
    try:
        graph, settings = application.program_of_row(
            row.model,
            target=row.target,
            sequence_length=row.sequence_length,
            mask_tokens=row.mask_tokens,
            micro_batch_size=row.micro_batch_size,
            gradient_accumulation=row.gradient_accumulation,
            replication_factor=row.replication_factor,
            layers_per_ipu=[int(count) if count % 1 == 0 else count for count in row.layers_per_ipu],
            optimizer_state=row.optimizer_state,
            # Some published configurations ask one replica to share with itself, which does nothing.
            replicated_tensor_sharding=row.replicated_tensor_sharding and row.replication_factor > 1,
            matmul_proportion=row.matmul_proportion,
            embedding_serialization_factor=row.embedding_serialization_factor,
        )
    except ValueError as error:
        problem = "; ".join(line.strip() for line in str(error).splitlines())
        column = _column_of(problem)
        raise row.error(column, problem.removeprefix(f"{column}: ")) from None
    return graph, replace(settings, framework=row.framework)


def _column_of(problem: str) -> str:
    """The column that a configuration's problem is about: its keys are the columns' names."""
    words = re.findall(r"\w+", problem)
    named = [word for word in words if word in COLUMNS]
    return named[0] if named else "model"
