"""The cost of the captured graph, compared with the formulas for a layer (analytic.py)."""

from __future__ import annotations

import pytest
from ipu_simulator.cost.constants import constants
from ipu_simulator.cost.time import costs_of, stage_loads
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import stages_of

from tests.ipu_simulator.cost.analytic import bert_layer, groupbert_layer, stash_cycles
from tests.ipu_simulator.cost.programs import program

pytestmark = pytest.mark.slow

CASES = [
    ("bert-base", 768, 12, 128, 32, 0.25),
    ("bert-base", 768, 12, 512, 8, 0.25),
    ("bert-medium", 512, 8, 128, 24, 0.4),
    ("groupbert-base", 768, 12, 128, 18, 0.2),
    ("groupbert-base", 768, 12, 384, 5, 0.18),
]


@pytest.mark.parametrize(("model", "hidden", "heads", "length", "batch", "proportion"), CASES)
def test_the_graph_of_a_stage_costs_what_formulas_say(model, hidden, heads, length, batch, proportion):
    layers = 4 if hidden == 768 else 2
    placement = (0, 4, 4, 4) if hidden == 768 else (2, 2, 2, 2)
    machine, shipped = target("pod16"), constants()
    graph, settings = program(
        model,
        sequence_length=length,
        micro_batch_size=batch,
        layers_per_ipu=placement,
        matmul_proportion=(proportion,) * 4,
    )
    costs = costs_of(graph, settings, machine)
    loads = stage_loads(graph, stages_of(graph, settings), costs, settings, machine, shipped)

    make = groupbert_layer if model.startswith("group") else bert_layer
    layer = make(hidden, heads, batch * length, length, machine, proportion)
    expected = layers * layer.cycles(shipped)
    expected += stash_cycles(layers, hidden, batch * length, machine, shipped)
    found = loads[1].total
    assert found.cycles(shipped) == pytest.approx(expected, rel=0.05)

    # And so do its parts. A GroupBERT layer's last projection isn't computed again: nothing needs its result.
    matmuls = layers * (2 * layer.forward.matmul + layer.backward.matmul)
    assert found.matmul_cycles == pytest.approx(matmuls, rel=0.02)
    compute_sets = layers * (2 * layer.forward.compute_sets + layer.backward.compute_sets)
    assert found.compute_sets == pytest.approx(compute_sets, rel=0.05)
