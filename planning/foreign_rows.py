"""Predictions of published measurements of other programs: their graphs, with the options of their runs.

`foreign_rows.yml` has the options, by the id of a row of evidence.csv.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

import torch
import yaml
from ipu_simulator.cost.assess import assess
from ipu_simulator.cost.constants import Constants, constants
from ipu_simulator.cost.settings import OptimizerSettings, Settings
from ipu_simulator.cost.time import program_of
from ipu_simulator.cost.verdict import Verdict
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import stages_of

import ipu
from planning import foreign

if TYPE_CHECKING:
    from ipu_simulator.graph.ir import Graph

FILE = Path(__file__).with_name("foreign_rows.yml")
# Units whose outputs are checkpoints in MLPerf's ResNet-50.
_CHECKPOINTS = ((1, 1), (1, 3), (2, 1), (2, 3), (3, 1), (3, 4))
# PopTorch's default.
_PROPORTION = 0.6


@dataclass(frozen=True)
class ForeignRow:
    """A row's program, its options and the machine's name. `assumed`: what the source doesn't say."""

    graph: Graph
    settings: Settings
    target: str
    assumed: str

    @property
    def verdict(self) -> Verdict:
        return assess(self.graph, self.settings, target(self.target), name="foreign")

    def step_s(self, values: Constants) -> float:
        machine = target(self.target)
        stages = stages_of(self.graph, self.settings)
        return program_of(self.graph, stages, self.settings, machine, constants()).step_s(machine, values)


def options_of_rows(path: Path = FILE) -> Mapping[str, Mapping[str, Any]]:
    """The options by row; entries whose names begin with an underscore are templates."""
    read: Dict[str, Dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {row: options for row, options in read.items() if not row.startswith("_")}


def foreign_row(row: str) -> Optional[ForeignRow]:
    """The program of a row; None if this repository has none."""
    options = options_of_rows().get(row)
    if options is None:
        return None
    batch = options.get("micro_batch_size", 1)
    optimizer = options.get("optimizer")
    graph = _graph(
        options["program"],
        batch,
        tuple(options.get("layers_per_ipu", ())),
        options.get("classes", 1000),
        tuple(map(tuple, options.get("shapes", ()))),
        bool(options.get("float32")),
        optimizer is not None,
        bool(options.get("linear")),
    )
    settings = Settings(
        micro_batch_size=batch,
        gradient_accumulation=options.get("gradient_accumulation", 1),
        replicas=options.get("replication_factor", 1),
        device_iterations=options.get("device_iterations", 1),
        matmul_proportions=(options.get("matmul_proportion", _PROPORTION),),
        half_partials=not options.get("float32"),
        execution="pipelined",
        recompute=True,
        optimizer=None
        if optimizer is None
        else OptimizerSettings(optimizer[0], tuple(optimizer[1]), optimizer[2], bool(options.get("sharded"))),
        framework=options.get("framework", "PopTorch"),
        updates_overlap=bool(options.get("updates_overlap")),
    )
    return ForeignRow(graph, settings, options["target"], options.get("assumed", ""))


@functools.lru_cache(maxsize=None)
def _graph(
    program: str,
    batch: int,
    layers_per_ipu: Tuple[int, ...],
    classes: int,
    shapes: Tuple[Tuple[int, ...], ...],
    float32: bool,
    training: bool,
    linear: bool,
) -> Graph:
    ipu.select_device("simulator")
    import poptorch
    from poptorch import simulator

    def begin(module: torch.nn.Module, name: str, number: int) -> torch.nn.Module:
        begun: torch.nn.Module = poptorch.BeginBlock(module, name, ipu_id=number)
        return begun

    mark = poptorch.recomputationCheckpoint if training else lambda tensor: tensor
    images, labels = torch.empty(batch, 3, 224, 224, dtype=torch.uint8), torch.empty(batch, dtype=torch.int32)
    text = torch.empty(batch, 128, dtype=torch.int32)
    inputs: Tuple[torch.Tensor, ...]
    with simulator.without_memory():
        if program == "resnet50":
            model: torch.nn.Module = foreign.ResNet50(_CHECKPOINTS, mark, classes)
            inputs = (images, labels)
        elif program == "vit":
            several = len(layers_per_ipu) > 1
            model = foreign.VisionTransformer(layers_per_ipu, mark, begin if several else None, classes)
            inputs = (images, labels) if training else (images.float(),)
        elif program == "mt5":
            model, inputs = foreign.MT5(begin, mark), (text, text)
        elif program == "conformer":
            model = foreign.Conformer(begin, mark)
            inputs = (torch.empty(batch, 800, 80, dtype=torch.float16), text[:, :32])
        else:
            assert program == "products", program
            model, inputs = foreign.Products(linear), tuple(torch.empty(*shape) for shape in shapes)
        if not float32:
            model.half()
        options = poptorch.Options()
        # As many as the longest pipeline needs; the settings have the row's.
        options.Training.gradientAccumulation(16)
        graph: Graph = simulator.capture(model.train(training), inputs, {}, options, training)
    return graph
