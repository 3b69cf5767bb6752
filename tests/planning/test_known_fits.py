"""The confusion matrix of programs that are known to fit or not."""

from __future__ import annotations

import pytest
from ipu_simulator.cost.verdict import COMPONENTS, IpuMemory

from planning.known_fits import Case, Judgement, cases, confusion, judge, markdown

JUDGEMENTS = (
    Judgement(Case("a", "a", "published", True), (0.5, 1.0)),
    Judgement(Case("b", "b", "published", True), (0.5, 1.01)),
    Judgement(Case("c", "c", "derived", False), (1.5, 0.1)),
    Judgement(Case("d", "d", "open"), (0.9,)),
)


def test_one_full_ipu_is_enough_to_not_fit():
    assert [each.fits for each in JUDGEMENTS] == [True, False, False, True]
    assert [each.right for each in JUDGEMENTS] == [True, False, True, None]


def test_open_cases_are_reported_but_not_scored():
    assert confusion(JUDGEMENTS) == {(True, True): 1, (True, False): 1, (False, False): 1}
    table = markdown(JUDGEMENTS)
    assert "| known to have run | 1 | 1 |" in table
    assert "| known or certain not to fit | 0 | 1 |" in table
    assert "| d | open | fits | 90% | open |" in table


def test_recipes_fit_as_published_and_the_boundaries_are_their_neighbours():
    found = cases(["squad_bert_large_384", "bert_large_128_pod4"])
    assert [case.fits for case in found[:2]] == [True, True]
    refused = {case.recipe: case.changes for case in found if case.fits is False}
    assert refused["squad_bert_large_384"]["replication_factor"] == 1
    assert len(refused) == 4 and sum(case.fits is None for case in found) == 3


@pytest.mark.parametrize("bytes_of_fullest_tile, fits", [(100, True), (101, False)])
def test_memory_is_asked_for_by_recipe_and_changes(bytes_of_fullest_tile, fits):
    asked = []
    nothing = dict.fromkeys(COMPONENTS, 0)

    def memory_of(recipe, changes):
        asked.append((recipe, changes))
        return [IpuMemory(0, 1000, 0, 0, nothing, nothing, bytes_of_fullest_tile, 100)]

    (judgement,) = judge([Case("x", "recipe", "open", None, {"key": 1})], memory_of)
    assert asked == [("recipe", {"key": 1})] and judgement.fits == fits
