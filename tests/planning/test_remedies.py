"""Remedies are true: whoever applies one finds the bytes and seconds that it promised."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any, Dict, Tuple

import pytest

import config
import run_pretraining
from config import Config
from planning import programs, remedies
from planning.dry_run import assess, program_of, verdict_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("remedies"),
]  # one process, for a fixture of ten seconds

SMALL = config.load("test_groupbert", overrides={"micro_batch_size": 8, "gradient_accumulation": 8})


def applied(name: str, overrides: dict, change: str) -> Config:
    parser = config.FlagParser()
    config.add_flags(parser)
    flags = config.overrides_from(parser.parse_args(shlex.split(change)))
    return config.load(name, overrides={**overrides, **flags})


def peak(verdict: Any) -> int:
    return max(memory.peak_bytes for memory in verdict.ipus)


@pytest.fixture(scope="module")
def too_large() -> Tuple[str, dict, Any]:
    """Two of the recipe's IPUs, full of layers as there, without its way to make room."""
    overrides: Dict[str, Any]
    name, overrides = "bert_large_128_pod4", {"optimizer_state": "on_chip", "device": "simulator"}
    overrides.update(num_layers=14, ipus_per_replica=2, layers_per_ipu=(7, 7), matmul_proportion=(0.1,))
    return name, overrides, verdict_of(config.load(name, overrides=overrides), name)


def test_what_fits_comes_first_and_the_recipes_way_out_is_the_first(too_large: tuple) -> None:
    _, _, verdict = too_large
    assert not verdict.fits
    assert verdict.remedies[0].change == "--optimizer-state off_chip"
    fits = [remedy.fits for remedy in verdict.remedies]
    assert fits == sorted(fits, reverse=True)
    saved = [remedy.saves_bytes for remedy in verdict.remedies if not remedy.fits]
    assert saved == sorted(saved, reverse=True) and all(each > 0 for each in saved)


def test_every_remedy_keeps_its_promise(too_large: tuple) -> None:
    name, overrides, before = too_large
    was = config.load(name, overrides=overrides)
    captured: Dict[object, Any] = {}
    words = " ".join(remedy.change for remedy in before.remedies)
    for flag in ("--optimizer-state", "--enable-half", "--micro-batch-size", "--matmul-proportion 0 0"):
        assert flag in words
    for remedy in before.remedies:
        changed = applied(name, overrides, remedy.change)
        key = programs.key_of(changed)
        if key not in captured:
            captured[key] = program_of(changed)
        graph, settings = captured[key]
        after = assess(changed, name, (graph, programs.with_options(settings, changed)))
        assert after.fits == remedy.fits, remedy
        assert peak(before) - peak(after) == remedy.saves_bytes, remedy
        sequences = was.global_batch_size / changed.global_batch_size
        assert after.step_s * sequences - before.step_s == pytest.approx(remedy.costs_s, abs=1e-9)


def test_replicas_are_a_remedy() -> None:
    name = "groupbert_base_128_pod16"
    sharded = config.load(name, overrides={"target": "pod64", "device": "simulator"})
    changes = list(remedies.changes_of(sharded))
    assert {"replication_factor": 8, "gradient_accumulation": 820} in changes
    assert {"replication_factor": 2, "gradient_accumulation": 3280} in changes
    two = config.load("test_bert", overrides={"replication_factor": 2, "replicated_tensor_sharding": True})
    accumulation = 2 * two.gradient_accumulation
    one = {"replication_factor": 1, "gradient_accumulation": accumulation}
    assert {**one, "replicated_tensor_sharding": False} in list(remedies.changes_of(two))


def test_a_lopsided_placement_is_balanced() -> None:
    lopsided = config.load("groupbert_base_128_pod16", overrides={"layers_per_ipu": (6, 6, 0, 0)})
    assert {"layers_per_ipu": (0, 4, 4, 4)} in list(remedies.changes_of(lopsided))
    balanced = config.load("bert_large_128_pod16")
    assert not [each for each in remedies.changes_of(balanced) if set(each) == {"layers_per_ipu"}]


def judge_by_bytes(limit: int) -> Any:
    """Memory that shrinks with micro batch and proportion, and time that grows: enough to see an order."""

    def judge(changed: Config) -> Tuple[float, int, bool]:
        used = 100 * changed.micro_batch_size + round(1000 * changed.matmul_proportion[0])
        return 1000 / used * changed.gradient_accumulation, used, used <= limit

    return judge


def test_pairs_are_tried_where_nothing_suffices_alone() -> None:
    judge = judge_by_bytes(500)
    alone = remedies.trials(SMALL, judge(SMALL)[1], judge)
    assert [len(trial.changes) for trial in alone if trial.fits] and all(
        set(trial.changes) != {"matmul_proportion", "micro_batch_size", "gradient_accumulation"}
        for trial in alone
    )
    judge = judge_by_bytes(320)
    paired = remedies.trials(SMALL, judge(SMALL)[1], judge)
    assert paired[0].fits
    assert set(paired[0].changes) == {"matmul_proportion", "micro_batch_size", "gradient_accumulation"}


def test_nothing_that_saves_nothing_is_suggested() -> None:
    def judge(changed: Config) -> Tuple[float, int, bool]:
        return 1.0, 1000, False

    assert remedies.trials(SMALL, 1000, judge) == []


def test_changes_keep_the_sequences_of_an_update() -> None:
    for changes in remedies.changes_of(config.load("bert_large_512_pod16")):
        trial = remedies.trial_of(config.load("bert_large_512_pod16"), changes, judge_by_bytes(0))
        assert trial.config.global_batch_size == 2 * 2048 * 4, changes


def test_a_micro_batch_without_a_half_becomes_the_largest_that_keeps_the_sequences() -> None:
    odd = config.load("test_groupbert", overrides={"micro_batch_size": 9, "gradient_accumulation": 10})
    sizes = [each for each in remedies.changes_of(odd) if "micro_batch_size" in each]
    assert sizes == [
        {"micro_batch_size": 2, "gradient_accumulation": 45},
        {"micro_batch_size": 3, "gradient_accumulation": 30},
    ]


def test_float16_is_a_remedy_for_float32() -> None:
    wide = config.load("bert_base_128_pod16", overrides={"precision": "float32", "device": "simulator"})
    (first, *_) = [each for each in verdict_of(wide, "wide").remedies if "float16" in each.change]
    assert first.fits and first.change == "--precision float16" and first.costs_s < 0


def test_words_are_flags_that_the_runners_take() -> None:
    change = {"replicated_tensor_sharding": True, "layers_per_ipu": (1, 1), "micro_batch_size": 2}
    text = remedies.words(change)
    assert text == "--replicated-tensor-sharding --layers-per-ipu 1 1 --micro-batch-size 2"
    assert applied("test_bert", {"replication_factor": 2}, text).micro_batch_size == 2
    assert remedies.words({"wandb": False}) == "--no-wandb"


def test_an_instance_shards_over_its_own_replicas() -> None:
    """Poplar's rule: with a replica an instance nothing is sharded, which the program has no memory for."""
    name = "groupbert_base_128_pod16"
    recipe = config.load(name, overrides={"device": "simulator", "micro_batch_size": 12})
    graph, settings = program_of(recipe)
    assert settings.shards == 4
    peaks = [peak(assess(recipe, name, (graph, replace(settings, instances=n)))) for n in (1, 2, 4)]
    alone = replace(settings, optimizer=replace(settings.optimizer, sharded=False))
    assert peaks == sorted(set(peaks)) and peaks[-1] == peak(assess(recipe, name, (graph, alone)))
    verdict = verdict_of(recipe, name, instances=4)
    assert not verdict.fits
    first = verdict.remedies[0]
    assert first.change.startswith("--instances 1 ") and first.fits
    assert first.saves_bytes == peaks[-1] - peaks[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--instances", "3", "--dry-run"],
            "--instances 3 can't share replication_factor 4 equally: use 2 or 4",
        ),
        (["--instances", "0", "--dry-run"], "use 1"),
        (["--instances", "4"], "is read with --dry-run only"),
        (["--instances", "2", "--dry-run", "--micro-batch-size", "auto"], "are searched for one instance"),
    ],
)
def test_instances_that_a_run_cannot_have(flags: list, words: str) -> None:
    with pytest.raises(config.ConfigError, match=words):
        run_pretraining.main(["--config", "groupbert_base_128_pod16", *flags])
