"""A compiled model's random numbers: independent of the host's threads, new per micro batch and replica."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.poptorch.executor_models import options, poptorch

# Large enough that torch uses several threads.
WIDE = 100_003


class Drawing(torch.nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return self.draw(x.expand(len(x), WIDE))


@pytest.fixture
def _threads_kept():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.3),
        lambda x: F.rrelu(-x, training=True),
        torch.rand_like,
        torch.randn_like,
        lambda x: torch.empty_like(x).exponential_(),
        lambda x: torch.bernoulli(x * 0.4),
    ],
    ids=["dropout", "rrelu", "rand_like", "randn_like", "exponential_", "bernoulli"],
)
@pytest.mark.usefixtures("_threads_kept")
def test_as_many_threads_draw_the_same(draw):
    drawn = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        executor = poptorch.inferenceModel(Drawing(draw), options(iterations=2, replicas=2, seed=5))
        drawn.append(executor(torch.ones(4, 1)))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    # Two device iterations of two replicas.
    rows = [tuple(row.tolist()) for row in drawn[0]]
    assert len(set(rows)) == 4


def test_a_seed_is_a_run():
    def first_run(seed):
        executor = poptorch.inferenceModel(Drawing(torch.rand_like), options(seed=seed))
        return torch.cat([executor(torch.ones(1, 1)) for _ in range(2)])

    assert torch.equal(first_run(7), first_run(7))
    assert not torch.equal(first_run(7), first_run(8))
    first, second = first_run(7)
    assert not torch.equal(first, second)
