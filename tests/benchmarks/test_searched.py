"""The recipe that the search found trains as the published one does, and is faster by the models."""

from __future__ import annotations

from dataclasses import fields

import pytest

import config
from planning import placement

pytestmark = pytest.mark.slow

PUBLISHED = config.load("groupbert_base_128_pod16")
FAST = config.load("groupbert_base_128_pod16_fast")


@pytest.mark.parametrize("machine", ["pod16", "bow-pod16"])
def test_the_fast_recipe_fits_and_is_faster(machine: str) -> None:
    search = placement.search_over(PUBLISHED, placement.target(machine))
    published, fast = (
        search.judge(placement.candidate_of(each, each.layers_per_ipu, False)) for each in (PUBLISHED, FAST)
    )
    assert published.fits and fast.fits
    assert fast.step_s < published.step_s


def test_it_differs_from_the_published_recipe_by_its_placement_alone() -> None:
    different = {key.name for key in fields(FAST) if getattr(FAST, key.name) != getattr(PUBLISHED, key.name)}
    assert different == {"layers_per_ipu", "matmul_proportion"}
    assert FAST.global_batch_size == PUBLISHED.global_batch_size
