"""The contenders do equal work, and their comparison is fair."""

import json
import os

import pytest
import torch

import ipu
from benchmarks import contenders, speed
from benchmarks.contenders import Apart, Contender, compare
from benchmarks.speed import plain_loop, simulator
from config import ConfigError
from run_benchmark import main

pytestmark = pytest.mark.slow


def test_they_alternate_and_take_turns_to_begin():
    order = []

    def contender(name, times):
        times = iter(times)

        def step_s():
            order.append(name)
            return next(times)

        return Contender(step_s)

    warm_up = [9.0] * contenders.WARM_UP_ROUNDS
    ours = contender("ours", [*warm_up, 1.0, 2.0, 4.0])
    theirs = contender("theirs", [*warm_up, 2.0, 2.0, 2.0])
    row = compare(ours, theirs, 3)
    assert order[2 * len(warm_up) :] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    # Ratios of neighbours 2, 1 and 0.5; warming up isn't counted.
    assert (row["median"], row["low"], row["high"]) == (1.0, 0.75, 1.5)
    assert row["better"] == "higher"


def test_where_lower_is_better_the_ratio_is_the_first_ones_time_over_the_seconds():
    row = compare(Contender(lambda: 3.0), Contender(lambda: 2.0), 2, better="lower")
    assert (row["median"], row["better"]) == (1.5, "lower")


def test_what_goes_wrong_in_the_other_process_is_told():
    with Apart("the other side") as process:
        with pytest.raises(ValueError, match="invalid literal"):
            process.contender(int, "no contender")
        with pytest.raises(ConfigError, match="the process of the other side died in the middle"):
            process.contender(os._exit, 3)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_simulator_and_plain_loop_reach_the_same_weights(device, accumulation):
    config = speed.config_of("tiny", 2, accumulation)
    first, second = simulator(config, "float32"), plain_loop(config, "float32")
    before = {name: weight.clone() for name, weight in first.model.state_dict().items()}
    for side in (first, second):
        side.step_s()
        side.step_s()
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys()
    moved = max(float((ours[name] - before[name]).abs().max()) for name in ours)
    assert moved > 1e-4
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=2e-6), name


def test_the_ratios_file(tmp_path, device):
    file = tmp_path / "deep" / "ratios.json"
    name = "tokenising_vs_encode_batch"  # the quickest
    main(["speed", "--json", str(file), "--only", name, "--rounds", "1", "--output", str(tmp_path)])
    ratios = json.loads(file.read_text())["ratios"]
    assert list(ratios) == [name]
    assert set(ratios[name]) == {"median", "low", "high", "goal", "stretch", "better"}
    assert (ratios[name]["goal"], ratios[name]["stretch"]) == (1.5, 2)


def test_a_row_that_this_machine_cant_show_is_left_out_with_the_reason(tmp_path, device, monkeypatch):
    monkeypatch.setattr(ipu, "bfloat16_instructions", lambda: None)
    file, name = tmp_path / "ratios.json", "mini_bfloat16_vs_float32_plain_loop"
    main(["speed", "--json", str(file), "--only", name, "--rounds", "1", "--output", str(tmp_path)])
    reason = "needs a CPU with AMX or AVX512-BF16"
    assert json.loads(file.read_text()) == {"ratios": {}, "left_out": {name: reason}}
    assert f"{name} is left out: it {reason}." in (tmp_path / "speed.json").read_text()


def test_both_sides_of_the_rows_about_data_run():
    pytest.importorskip("accelerate")
    for comparison in speed.comparisons():
        if comparison.name in ("masking_vs_collator", "tokenising_vs_encode_batch"):
            for build, arguments in (comparison.ours, comparison.theirs):
                assert build(*arguments).step_s() > 0


def test_one_batch_has_the_work_of_its_micro_batches(device):
    config = speed.config_of("tiny", 1, 4)
    whole, parts = speed.one_batch(config, "float32"), speed.plain_loop_that_keeps_memory(config, "float32")
    for side in (whole, parts):
        side.step_s()
    for name, weight in whole.model.state_dict().items():
        # Every mask slot is in use, so the mean over all is the mean of means.
        assert torch.allclose(weight, parts.model.state_dict()[name], atol=1e-5), name


def test_the_names_of_the_rows_are_listed_once_and_a_wrong_one_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["speed", "--help"])
    shown = capsys.readouterr().out
    rows = [line.strip() for line in shown.partition("\nrows:\n")[2].splitlines()]
    assert rows == [comparison.name for comparison in speed.comparisons()]
    assert shown.count(rows[-1]) == 1
    with pytest.raises(SystemExit):
        main(["speed", "--only", "masking_vs_colator"])
    said = capsys.readouterr().err
    assert "'masking_vs_colator' is not a row; did you mean 'masking_vs_collator'" in said
    assert "accumulation_64" not in said
