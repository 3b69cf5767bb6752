"""The cost model's settings, from a program's options and optimizer."""

from __future__ import annotations

import pytest
import torch

from tests.ipu_simulator.graph.programs import options, poptorch, simulator


def _weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(2))]


def _settings(optimizer, made=None, **more):
    return simulator.settings_of(made or options(), optimizer, 4, **more)


HALF = {"accum_type": torch.float16, "first_order_momentum_accum_type": torch.float16}


@pytest.mark.parametrize(
    ("optimizer", "name", "state", "accumulator"),
    [
        (lambda w: poptorch.optim.LAMB(w, lr=0.1, **HALF), "lamb", (2, 4), 2),
        (lambda w: poptorch.optim.LAMB(w, lr=0.1, bias_correction=False), "lamb", (4, 4), 4),
        (lambda w: poptorch.optim.AdamW(w, lr=0.1, accum_type=torch.float16), "adamw", (4, 4), 2),
        (lambda w: torch.optim.Adam(w), "adam", (4, 4), 4),
        (lambda w: torch.optim.SGD(w, lr=0.1), "sgd", (), 4),
        (lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9), "sgd", (4,), 4),
        (
            lambda w: poptorch.optim.SGD(
                w, lr=0.1, momentum=0.9, use_combined_accum=False, velocity_accum_type=torch.float16
            ),
            "sgd",
            (2,),
            4,
        ),
        # The combined accumulator is the velocity.
        (lambda w: poptorch.optim.SGD(w, lr=0.1, momentum=0.9, use_combined_accum=True), "sgd", (), 4),
        (lambda w: torch.optim.RMSprop(w), "rmsprop", (4,), 4),
        (lambda w: torch.optim.RMSprop(w, momentum=0.9, centered=True), "rmsprop", (4, 4, 4), 4),
    ],
)
def test_state_and_accumulators_have_the_optimizer_s_types(optimizer, name, state, accumulator) -> None:
    settings = _settings(optimizer(_weights()))
    assert settings.optimizer.name == name
    assert settings.optimizer.state_bytes_per_element == state
    assert settings.accumulator_bytes == accumulator


@pytest.mark.parametrize(("on_chip", "place"), [(True, "on_chip"), (False, "off_chip")])
def test_the_state_stands_where_the_options_say(on_chip: bool, place: str) -> None:
    made = options()
    made.TensorLocations.setOptimizerLocation(
        poptorch.TensorLocationSettings().useOnChipStorage(on_chip).useReplicatedTensorSharding(True)
    )
    optimizer = _settings(torch.optim.Adam(_weights()), made).optimizer
    assert (optimizer.location, optimizer.sharded) == (place, True)
    default = _settings(torch.optim.Adam(_weights())).optimizer
    assert (default.location, default.sharded) == ("on_chip", False)


def test_counts_and_proportions_are_the_options() -> None:
    made = options()
    made.deviceIterations(3)
    made.replicationFactor(4)
    made.Distributed.configureProcessId(0, 2)
    made.setAvailableMemoryProportion({"IPU1": 0.25})
    settings = _settings(torch.optim.Adam(_weights()), made, num_ipus=3)
    assert (settings.micro_batch_size, settings.gradient_accumulation) == (4, 16)
    assert (settings.device_iterations, settings.replicas) == (3, 8)
    assert settings.matmul_proportions == (0.6, 0.25, 0.6)
    assert settings.framework == "PopTorch"


def test_inference_has_no_optimizer_and_accumulates_nothing() -> None:
    settings = _settings(None)
    assert settings.optimizer is None
    assert settings.gradient_accumulation == 1


def test_partials_are_half_where_the_options_say() -> None:
    made = options()
    made.Precision.setPartialsType(torch.half)
    assert _settings(None, made).half_partials
    assert not _settings(None).half_partials


@pytest.mark.parametrize(
    ("strategy", "popart", "execution", "recompute"),
    [
        (poptorch.PipelinedExecution(), {}, "pipelined", True),
        (poptorch.PipelinedExecution(), {"autoRecomputation": 0}, "pipelined", False),
        (poptorch.ShardedExecution(), {}, "sharded", False),
        (poptorch.ShardedExecution(), {"autoRecomputation": 1}, "sharded", True),
        (poptorch.SerialPhasedExecution("A", "B"), {}, "sharded", False),
    ],
)
def test_pipelines_recompute_unless_told_otherwise(strategy, popart, execution, recompute) -> None:
    settings = _settings(None, options(strategy, **popart))
    assert (settings.execution, settings.recompute) == (execution, recompute)


def test_what_else_the_options_keep_off_the_chip():
    made = options()
    away = poptorch.TensorLocationSettings().useOnChipStorage(False)
    assert simulator.settings_of(made, None, 1).off_chip == frozenset()
    made.TensorLocations.setWeightLocation(away)
    made.TensorLocations.setActivationLocation(away)
    sharded = poptorch.TensorLocationSettings().useOnChipStorage(False).useReplicatedTensorSharding(True)
    made.TensorLocations.setAccumulatorLocation(sharded)
    found = simulator.settings_of(made, None, 1)
    assert found.off_chip == {"weights", "stashes", "gradient_accumulators"}
    assert found.off_chip_sharded == {"gradient_accumulators"}
    # On the chip, sharded or not, is not off the chip.
    made.TensorLocations.setWeightLocation(
        poptorch.TensorLocationSettings().useOnChipStorage(True).useReplicatedTensorSharding(True)
    )
    assert "weights" not in simulator.settings_of(made, None, 1).off_chip
