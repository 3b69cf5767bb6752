"""Overlapped input and output: values are unchanged, and PopTorch's rules hold."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import poptorch

NO, INNER, OUTER = (
    poptorch.OverlapMode.NoOverlap,
    poptorch.OverlapMode.OverlapAccumulationLoop,
    poptorch.OverlapMode.OverlapDeviceIterationLoop,
)
take, give = poptorch.set_overlap_for_input, poptorch.set_overlap_for_output
X = torch.arange(6.0).reshape(3, 2)


class Model(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.function = function

    def forward(self, x, y=None):
        return self.function(self, x) if y is None else self.function(self, x, y)


def options(strategy=None, tiles=32):
    made = poptorch.Options().deviceIterations(3)
    made.setExecutionStrategy(strategy or poptorch.ShardedExecution())
    if tiles:
        made.TensorLocations.numIOTiles(tiles)
    return made


def run(function, *inputs, made=None):
    return poptorch.inferenceModel(Model(function), made or options())(*(inputs or (X,)))


@pytest.mark.parametrize("mode", [NO, INNER, OUTER])
def test_values_are_unchanged(mode):
    assert torch.equal(run(lambda m, x: give(take(x, mode) * 2, mode)), X * 2)
    assert torch.equal(run(lambda m, x: give(take(x, mode), mode)), X)

    def nested(m, x, y):
        x, rest = take((x, {"y": y, "n": 1}), mode)
        made = x + rest["y"]
        return give({"sum": made}, mode), made  # what is computed before the output may be used again

    both, made = run(nested, X, X)
    assert torch.equal(both["sum"], 2 * X) and torch.equal(made, 2 * X)
    unchanged = run(lambda m, x: (take(x.to(x.dtype), mode) * 2, x.shape[0]))[0]  # shapes are no use
    assert torch.equal(unchanged, X * 2)


def test_training():
    def forward(m, x, y):
        out = take(x, INNER) * m.weight
        return give(out, INNER), give(poptorch.identity_loss((out - take(y, OUTER)).sum(), "none"), OUTER)

    model = Model(forward)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    executor = poptorch.trainingModel(model, options().deviceIterations(1), optimizer)
    out, loss = executor(X, torch.zeros(3, 2))
    assert torch.equal(out, X) and loss == X.sum()
    assert torch.equal(model.weight, torch.ones(2) - X.sum(0))


def used_elsewhere(m, x):
    made = take(x, NO)
    return made + x


def written_elsewhere(m, x):
    other = torch.zeros_like(m.weight).repeat(len(x), 1)
    other[:] = x
    return take(x, NO) + other


NO_INPUT = "set_overlap_for_input applied on a node which is not a tensor input to the model"
ELSEWHERE = "set_overlap_for_input applied at test_overlap.py:[0-9]+ on a tensor which is used elsewhere"
NO_OUTPUT = "set_overlap_for_output applied at test_overlap.py:[0-9]+ on a node which is not a tensor output"
TWICE = "set_overlap_for_output applied at test_overlap.py:[0-9]+ on a tensor which is returned 2 times"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda m, x: take(x + 1, NO), NO_INPUT),
        (lambda m, x: take(x.half(), NO), NO_INPUT),
        (lambda m, x: take(m.weight, NO) + x, NO_INPUT),
        (lambda m, x: take(take(x, NO), NO), NO_INPUT),
        (used_elsewhere, ELSEWHERE),
        (written_elsewhere, ELSEWHERE),
        (lambda m, x: take(x, NO) + take(x, NO), ELSEWHERE),
        (lambda m, x: (take(x, NO) * 2, x), ELSEWHERE),
        (lambda m, x: (take(x, NO) * 2, x[0]), ELSEWHERE),
        (lambda m, x: give(x * 2, NO) + 1, NO_OUTPUT),
        (lambda m, x: (lambda y: (y, y.sum()))(give(x * 2, NO)), NO_OUTPUT),
        (lambda m, x: (give(x * 2, NO), x)[1], NO_OUTPUT),
        (lambda m, x: (lambda y: (y, y))(give(x * 2, NO)), TWICE),
    ],
)
def test_an_input_or_output_and_nothing_else(function, text):
    with pytest.raises(poptorch.Error, match=text):
        run(function)
    from poptorch.simulator import capture

    with pytest.raises(poptorch.Error, match=text):
        capture(Model(function), (X[:1],), {}, options(), training=False)


@pytest.mark.parametrize("mode", [INNER, OUTER])
@pytest.mark.parametrize("overlap", [take, give])
def test_the_options_have_to_allow_it(overlap, mode):
    def function(m, x):
        return overlap(x, mode)

    pipelined = "set_overlap_for_.*isn't supported by poptorch.PipelinedExecution"
    for strategy in (poptorch.PipelinedExecution(), poptorch.PipelinedExecution("A")):
        with pytest.raises(poptorch.Error, match=pipelined):
            run(function, made=options(strategy))
    with pytest.raises(poptorch.Error, match=r"In test_overlap.py:.*no IO tiles allocated.*at least 32"):
        run(function, made=options(tiles=0))
    for idle in (options(poptorch.PipelinedExecution(), 0), options(tiles=0)):
        assert torch.equal(run(lambda m, x: overlap(x, NO), made=idle), X)
