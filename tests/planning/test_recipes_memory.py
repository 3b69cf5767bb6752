"""What the memory model says of the recipes, against formulas that know no graph.

Letters: h hidden size, V vocabulary, P positions, B sequences of a micro batch, S tokens, M masked tokens, F
forward stages, s a stage. float16 has 2 bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

import pytest
from ipu_simulator.cost.constants import memory_constants
from ipu_simulator.cost.memory import memory_of, plans_of
from ipu_simulator.cost.ops import OpCost
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import stages_of

from config import Config, names
from planning.known_fits import cases, judge
from tests.planning.recipe_programs import program, recipe

# In one process, for which `program` captures each graph once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("recipes")]

PRETRAINING = [
    name for name in names() if not name.startswith("test_") and recipe(name).task == "pretraining"
]


def layer_parameters(config: Config) -> int:
    """BERT 12 h^2 + 13 h: attention 4 (h^2 + h), feed-forward 8 h^2 + 5 h, two LayerNorms. GroupBERT's 19 h^2
    beside vectors and a convolution of h 16 x 7 filters."""
    h = config.hidden_size
    return 19 * h * h + (16 * 7 + 30) * h if config.model == "groupbert" else 12 * h * h + 13 * h


def always_live_bytes(config: Config) -> list[dict[str, float]]:
    """Bytes by component on each IPU, embeddings and heads on IPU 0."""
    h, vocabulary, groupbert = (
        config.hidden_size,
        config.model_config().vocab_size,
        config.model == "groupbert",
    )
    positions = config.model_config().max_position_embeddings
    rows = config.micro_batch_size * config.sequence_length
    embeddings = (vocabulary + positions + 2) * h + 2 * h
    heads = 2 * (h * h + h) + 2 * h + vocabulary + 2 * h + 2
    stages = sum(1 for layers in config.layers_per_ipu[1:] if layers) + 2  # IPU 0 has the first and the last
    stages = stages if len(config.layers_per_ipu) > 1 else 1
    state = 0 if config.optimizer_state == "off_chip" else 8 / max(1, config.replication_factor)
    if not config.replicated_tensor_sharding:
        state = 0 if config.optimizer_state == "off_chip" else 8
    ipus: list[dict[str, float]] = []
    for ipu, layers in enumerate(config.layers_per_ipu):
        parameters = layers * layer_parameters(config) + (embeddings + heads if ipu == 0 else 0)
        last = ipu == len(config.layers_per_ipu) - 1
        parameters += 2 * h if groupbert and last else 0  # the last LayerNorm
        slots = 2 * (stages - 1 - ipu) + 1 if stages > 1 else 0
        if ipu == 0:
            # outputs of layers; ids and types of tokens, and the mask where there are layers
            stashed = max(0, layers - 1) * rows * h * 2 + (3 if layers else 2) * rows * 4
        else:
            # Packed rows have an attention mask for each pair of positions, not for each position.
            attention = rows * config.sequence_length if config.packed_data else rows
            masks = (attention + rows if groupbert else attention) * 2
            stashed = (layers + (groupbert and last)) * rows * h * 2 + masks
        inputs = 3 * rows + 2 * config.micro_batch_size * config.mask_tokens + config.micro_batch_size
        ipus.append(
            {
                "weights": 2 * parameters,
                "gradient_accumulators": 2 * parameters,
                "optimizer_state": state * parameters,
                "stashes": slots * stashed,
                "stream_buffers": 4 * inputs if ipu == 0 else 0,
            }
        )
    return ipus


@pytest.mark.parametrize("name", PRETRAINING)
def test_always_live_bytes_equal_the_closed_formula(name):
    config = recipe(name)
    graph, settings = program(config)
    stages = stages_of(graph, settings)
    constants = memory_constants()
    no_cost = OpCost("view")
    plans = plans_of(graph, stages, settings, constants, lambda _op: no_cost)
    expected = always_live_bytes(config)
    assert len(plans) == len(expected)
    for plan, of_ipu in zip(plans, expected):
        found = dict.fromkeys(of_ipu, 0)
        for buffer in plan.always:
            if buffer.component in found:
                found[buffer.component] += buffer.bytes
            else:
                assert buffer.component in ("code", "exchange_code")
        assert sum(found.values()) == pytest.approx(sum(of_ipu.values()), rel=0.01), (found, of_ipu)
        for component, size in of_ipu.items():
            assert found[component] == pytest.approx(size, rel=0.02, abs=1e5), component


def published() -> list[str]:
    families = ("bert_", "groupbert_", "squad_bert_", "squad_groupbert_", "glue_")
    return [name for name in names() if name.startswith(families)]


def memory_of_recipe(name: str, changes: Mapping[str, Any]) -> Any:
    config = recipe(name, **changes)
    graph, settings = program(config)
    return memory_of(
        graph,
        stages_of(graph, settings),
        settings,
        target(config.target),
        memory_constants(),
    )


@pytest.mark.parametrize("case", cases(published()), ids=lambda case: case.name)
def test_what_ran_fits_and_what_cannot_is_refused(case):
    estimate = memory_of_recipe(case.recipe, case.changes)
    (judgement,) = judge([case], lambda _name, _changes: estimate.ipus)
    assert judgement.right is not False, judgement.filled
    assert estimate.fits == judgement.fits
    refused = {memory.ipu for memory in estimate.ipus if memory.filled > 1}
    assert {overflow.ipu for overflow in estimate.overflows} == refused
    for memory in estimate.ipus:
        assert sum(memory.components.values()) == memory.peak_bytes
        assert sum(memory.always_live_components.values()) == memory.always_live_bytes <= memory.peak_bytes
        points = [point.live_bytes for point in estimate.liveness if point.ipu == memory.ipu]
        assert max(points) == memory.peak_bytes and min(points) >= memory.always_live_bytes
    for overflow in estimate.overflows:
        memory = estimate.ipus[overflow.ipu]
        sizes = [buffer.bytes for buffer in overflow.buffers]
        usable_bytes = memory.peak_bytes - overflow.over_bytes
        assert sum(sizes) > usable_bytes >= sum(sizes[:-1]) and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", ["bert_large_128_pod16", "groupbert_large_128_pod16_adam_tf1"])
def test_more_memory_never_unfits(name):
    """Though a plan may take more of it: these two fill their tiles to 90% and 98%."""
    config = recipe(name)
    graph, settings = program(config)
    stages = stages_of(graph, settings)
    machine = target(config.target)
    constants = memory_constants()
    fits = []
    for factor in (0.5, 0.95, 1.0, 1.02, 1.1, 1.5):
        larger = replace(machine, bytes_per_tile=int(machine.bytes_per_tile * factor))
        fits.append(memory_of(graph, stages, settings, larger, constants).fits)
    assert fits == sorted(fits) and not fits[0] and fits[-1]
