"""Keys that are left to a search: what is found is the best there is, and concrete."""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
from dataclasses import replace
from typing import Any, List

import pytest
from ipu_simulator.environment import target
from ipu_simulator.graph.stages import restage
from ipu_simulator.report.sums import human_bytes

import config
from config import Config, ConfigError
from planning import placement
from planning.dry_run import program_of, verdict_of

# One process, for the fixture `search`.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("placement")]

LAYERS = 4
SMALL = {
    "num_layers": LAYERS,
    "ipus_per_replica": 3,
    "layers_per_ipu": (0, 2, 2),
    "gradient_accumulation": 24,
    "device": "simulator",
}


def small(name: str = "test_groupbert", **changes: Any) -> Config:
    return config.load(name, overrides={**SMALL, "matmul_proportion": (0.25,), **changes})


def placements(number: int, ipus: int) -> List[tuple]:
    return [counts for counts in itertools.product(range(number + 1), repeat=ipus) if sum(counts) == number]


@pytest.mark.parametrize("name", ["test_bert", "test_groupbert", "test_squad"])
@pytest.mark.parametrize("layers", [(0, 2, 2), (1, 0, 3), (4, 0, 0), (2, 1, 1)])
def test_moved_blocks_are_as_if_captured_there(name: str, layers: tuple) -> None:
    wanted = small(name, layers_per_ipu=layers)
    deep, _ = program_of(wanted, layers_per_ipu=[0] + [1] * LAYERS)
    candidate = placement.candidate_of(wanted, layers, False)
    moved = restage(deep, candidate.ipu_of_block)
    assert moved == program_of(wanted)[0]


@pytest.fixture(scope="module")
def search() -> Any:
    """A search on a machine whose memory only some placements fit."""
    made = placement.search_over(small())
    roomy = target(small().target)
    all_of_them = [made.judge(placement.candidate_of(small(), each, False)) for each in placements(LAYERS, 3)]
    used = [roomy.bytes_per_tile - judged.headroom_bytes / roomy.tiles_per_ipu for judged in all_of_them]
    return placement.search_over(small(), replace(roomy, bytes_per_tile=int(statistics.median(used))))


@pytest.mark.parametrize("choices", [(0.25,), (0.1, 0.4)])
def test_the_search_finds_what_trying_everything_finds(search: Any, choices: tuple) -> None:
    candidates = [placement.candidate_of(small(), each, False) for each in placements(LAYERS, 3)]
    everything = [
        search.judge(replace(candidate, proportions=tuple((share,) for share in shares)))
        for candidate in candidates
        for shares in itertools.product(choices, repeat=3)
    ]
    fitting = [judged for judged in everything if judged.fits]
    assert 0 < len(fitting) < len(everything), "the machine should be tight"
    found = search.fastest([replace(each, proportions=(choices,) * 3) for each in candidates])
    assert found.best.fits and found.gap == 0
    assert found.best.step_s == min(judged.step_s for judged in fitting)
    assert all(not each.fits and each.step_s < found.best.step_s for each in found.faster)


def test_bounds_are_below_what_they_bound(search: Any) -> None:
    for layers in placements(LAYERS, 3):
        candidate = placement.candidate_of(small(), layers, False)
        judged = search.judge(candidate)
        micro_batches_s = SMALL["gradient_accumulation"] * judged.cycle_s
        bound_s = search.lower_bound_s(candidate)
        assert 0.5 * micro_batches_s + search.update_s(candidate) < bound_s <= judged.step_s


def test_placements_are_all_there_are_until_they_are_too_many() -> None:
    free = placement.ANY
    assert sorted(placement.placements_of(LAYERS, [free] * 3)) == sorted(placements(LAYERS, 3))
    many = list(placement.placements_of(24, [free] * 8))
    assert len(many) == len(set(many)) < 10_000
    assert all(sum(each) == 24 and max(each) <= 4 for each in many)
    assert (2, 3, 3, 3, 3, 3, 3, 4) in many and (0, 3, 3, 3, 4, 4, 4, 3) in many  # published ones
    assert list(placement.placements_of(4, [4, free])) == [(4, 0)]


def test_what_is_found_is_never_slower_than_what_was_known(search: Any) -> None:
    candidates = [placement.candidate_of(small(), each, False) for each in placements(LAYERS, 3)]
    best = search.fastest(candidates).best
    known = replace(candidates[0], ipu_of_block=best.ipu_of_block)
    assert search.fastest(candidates, max_judged=0, known=known).best == best


def test_an_early_end_says_how_much_could_be_missed(search: Any) -> None:
    candidates = [placement.candidate_of(small(), each, False) for each in placements(LAYERS, 3)]
    whole, cut = search.fastest(candidates), search.fastest(candidates, max_judged=1)
    assert cut.judged == 1
    assert cut.best is None or cut.best.step_s * (1 - cut.gap) <= whole.best.step_s


def load(**overrides: Any) -> Config:
    given = {**SMALL, **overrides}
    return placement.load("test_groupbert", overrides=given, report=lambda line: None)


def test_a_wildcard_keeps_what_is_fixed_and_all_is_concrete() -> None:
    found = load(layers_per_ipu=(1, -1, -1))
    assert found.layers_per_ipu[0] == 1 and sum(found.layers_per_ipu) == LAYERS
    assert config.Config(**found.to_dict()) == found
    assert load(layers_per_ipu=(0, 4, -1)).layers_per_ipu == (0, 4, 0)


def test_a_free_micro_batch_keeps_the_sequences_of_an_update() -> None:
    before = small()
    found = load(micro_batch_size="auto")
    sequences = before.micro_batch_size * before.gradient_accumulation
    assert found.micro_batch_size * found.gradient_accumulation == sequences
    assert found.layers_per_ipu == before.layers_per_ipu


def test_nothing_slower_than_what_another_search_found_is_looked_at(search: Any) -> None:
    candidates = [placement.candidate_of(small(), each, False) for each in placements(LAYERS, 3)]
    best = search.fastest(candidates).best
    none = search.fastest(candidates, faster_than_s=best.step_s)
    assert none.best is None and all(each.step_s < best.step_s for each in none.faster)
    again = search.fastest(candidates, faster_than_s=1.0001 * best.step_s)
    assert again.best == best and again.judged <= search.fastest(candidates).judged


def test_a_free_micro_batch_is_the_fastest_of_all_that_are_searched_alone() -> None:
    lines: List[str] = []
    given = {**SMALL, "layers_per_ipu": "auto"}
    free = placement.load(
        "test_groupbert", overrides={**given, "micro_batch_size": "auto"}, report=lines.append
    )
    alone = {}
    for sized in placement.micro_batches_of(config.load("test_groupbert", overrides=SMALL), True):
        found = placement.fastest_of(sized, {"layers_per_ipu"}, [placement.ANY] * 3, math.inf, 300)
        if found is not None and found.best is not None:
            alone[sized.micro_batch_size] = found.best.step_s
    assert len(alone) > 2
    assert free.micro_batch_size == min(alone, key=alone.__getitem__)
    assert "none is faster and fits" in lines[2]


def test_what_programs_share_leaves_the_result_of_trying_each_program_alone() -> None:
    free = load(layers_per_ipu=(0, -1, -1), optimizer_state="auto")
    keys = {"layers_per_ipu", "optimizer_state"}
    best_s = {
        variant: min(
            verdict.step_s
            for layers in placement.placements_of(LAYERS, [0, placement.ANY, placement.ANY])
            for verdict in [alone.judge(placement.candidate_of(variant, layers, False))]
            if verdict.fits
        )
        for variant in placement.variants_of(config.load("test_groupbert", overrides=SMALL), keys)
        for alone in [placement.search_over(variant)]
    }
    assert len(best_s) == 2
    assert verdict_of(free, "").step_s == min(best_s.values())


def test_memory_that_is_kept_for_an_ipu_is_that_of_the_whole_program(search: Any) -> None:
    for layers in ((0, 2, 2), (4, 0, 0)):
        candidate = placement.candidate_of(small(), layers, False)
        wanted = verdict_of(small(layers_per_ipu=layers), "")
        found = search.judge(candidate)
        fullest = max(wanted.ipus, key=lambda memory: memory.fullest_tile_bytes)
        assert found.fullest_ipu == fullest.ipu
        assert found.step_s == wanted.step_s
        assert found.cycle_s == wanted.pipeline.cycle_s


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_is_a_line_on_a_terminal_and_one_every_ten_seconds_in_a_log(on_terminal: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return on_terminal

    now_s, stream = [0.0], Stream()
    progress = placement.Progress(36, stream, lambda: now_s[0])
    for now_s[0], done, best_s in ((0.1, 0, None), (10.0, 1, None), (12.0, 2, 1.234), (21.0, 12, 1.234)):
        progress.done, progress.best_s = done, best_s
        progress.tick()
    progress.close()
    head = "placement search: "
    if on_terminal:
        assert stream.getvalue().split("\r")[1:4] == [
            f"{head}1 of 36 programs, nothing fits yet",
            f"{head}2 of 36 programs, best so far 1.234 s",
            f"{head}12 of 36 programs, best so far 1.234 s",
        ]
        assert stream.getvalue().split("\r")[4].strip() == "" and stream.getvalue().endswith("\r")
    else:
        assert stream.getvalue().splitlines() == [
            f"{head}1 of 36 programs, nothing fits yet",
            f"{head}12 of 36 programs, best so far 1.234 s",
        ]


def test_without_free_keys_nothing_is_searched() -> None:
    assert load() == config.load("test_groupbert", overrides=SMALL)


def test_lines_say_what_was_chosen_and_why() -> None:
    lines: List[str] = []
    found = placement.load(
        "test_groupbert", overrides={**SMALL, "layers_per_ipu": "auto"}, report=lines.append
    )
    assert "layers_per_ipu " + " ".join(map(str, found.layers_per_ipu)) in lines[0]
    fullest = max(verdict_of(found, "test_groupbert").ipus, key=lambda memory: memory.filled)
    [headroom] = re.findall(r"with (\S+ \w+) of headroom", lines[1])
    assert headroom == human_bytes(fullest.usable_bytes - fullest.peak_bytes)
    assert "predicted" in lines[1]
    assert "none is faster and fits" in lines[2]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"layers_per_ipu": (0, -1)}, "for 2 IPUs, but ipus_per_replica is 3"),
        ({"layers_per_ipu": (5, -1, -1)}, "1 more than num_layers 4"),
        ({"layers_per_ipu": (-2, -1, -1)}, "-2 is neither"),
        ({"layers_per_ipu": (-1, -1, -1), "hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_bad_patterns(overrides: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(**overrides)


def test_auto_knows_accumulation_replicas_state_and_recomputation() -> None:
    given = {"replication_factor": 2, "gradient_accumulation": 24, "target": "pod16"}
    found = load(
        **given,
        optimizer_state="auto",
        recompute_checkpoint_every_layer="auto",
        **{"matmul_proportion": (0.2, 0.2, 0.2)},
    )
    best = min(
        (
            verdict_of(
                small(**given, optimizer_state=place, recompute_checkpoint_every_layer=every),
                "",
            ).step_s,
            place,
            every,
        )
        for place in ("on_chip", "off_chip")
        for every in (True, False)
    )
    assert (found.optimizer_state, found.recompute_checkpoint_every_layer) == best[1:]
    free = load(gradient_accumulation=48, target="pod16", replication_factor="auto")
    before = small(gradient_accumulation=48, target="pod16")
    assert free.global_batch_size == before.global_batch_size
    assert free.replication_factor * free.ipus_per_replica <= 16
    steps = {
        count.replication_factor: verdict_of(count, "").step_s
        for count in placement.variants_of(before, {"replication_factor"})
    }
    assert {1, 2, 4} <= set(steps)
    assert free.replication_factor == min(steps, key=steps.__getitem__)


def test_auto_accumulation_keeps_the_recipes_sequences() -> None:
    recipe = config.load("groupbert_base_128_pod16")
    lines: List[str] = []
    found = placement.load(
        "groupbert_base_128_pod16",
        overrides={"micro_batch_size": 5, "replication_factor": 2, "gradient_accumulation": "auto"},
        report=lines.append,
    )
    assert found.global_batch_size == recipe.global_batch_size
    assert f"gradient_accumulation {found.gradient_accumulation}" in lines[0]
    with pytest.raises(ConfigError, match=r"65600 sequences .* 28 at a time .* make that 25 or 32"):
        placement.load(
            "groupbert_base_128_pod16",
            overrides={"micro_batch_size": 7, "gradient_accumulation": "auto"},
            report=lines.append,
        )


def test_where_nothing_fits_the_nearest_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no value of layers_per_ipu makes .* lacks .* on IPU"):
        placement.load(
            "bert_large_512_pod16",
            overrides={
                "layers_per_ipu": (0, 8, 8, -1),
                "micro_batch_size": 64,
                "gradient_accumulation": 64,
                "device": "simulator",
            },
            report=lambda line: None,
        )


def test_config_itself_refuses_what_is_not_found_yet() -> None:
    with pytest.raises(ConfigError, match=r"layers_per_ipu: is auto; use planning\.placement\.load"):
        config.load("test_groupbert", overrides={"layers_per_ipu": "auto"})


def test_flags_take_auto_and_wildcards() -> None:
    parser = config.FlagParser()
    config.add_flags(parser)
    words = "--micro-batch-size auto --matmul-proportion auto --layers-per-ipu 0 -1 -1".split()
    words += (
        "--optimizer-state auto --recompute-checkpoint-every-layer auto --replication-factor auto".split()
    )
    assert config.overrides_from(parser.parse_args(words)) == {
        "optimizer_state": "auto",
        "recompute_checkpoint_every_layer": "auto",
        "replication_factor": "auto",
        "micro_batch_size": "auto",
        "matmul_proportion": "auto",
        "layers_per_ipu": (0, -1, -1),
    }


@pytest.mark.parametrize("name", ["bert_base_128_pod16", "squad_groupbert_base_384"])
def test_never_worse_than_the_published_placement(name: str) -> None:
    published = config.load(name)
    made = placement.search_over(published)
    as_published = made.judge(placement.candidate_of(published, published.layers_per_ipu, False))
    pattern = [placement.ANY] * published.ipus_per_replica
    candidates = placement.placements_of(published.num_layers, pattern)
    found = made.fastest([placement.candidate_of(published, each, False) for each in candidates])
    assert as_published.fits
    assert found.best.step_s <= as_published.step_s
