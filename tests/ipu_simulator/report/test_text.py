"""The table that a dry run prints, and the last lines of a training run."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from ipu_simulator import report
from ipu_simulator.cost.verdict import Buffer, Remedy
from ipu_simulator.report.sums import by_kind, by_module, human_bytes, percent

from tests.ipu_simulator.report.samples import fitting, overflowing
from tests.ipu_simulator.report.test_schedule import pipelined, program


def test_the_first_line_answers() -> None:
    assert report.text(fitting()).splitlines()[:2] == [
        "bert_large_128_bow_pod16 on bow-pod16: FITS (predicted)",
        "  IPU 0 is the fullest, at 99.2%: 6.8 MiB headroom",
    ]
    first, second = report.text(overflowing()).splitlines()[:2]
    assert first == "bert_large_128_pod4 on bow-pod16: DOES NOT FIT (predicted)"
    assert second.endswith(" over")


@pytest.mark.parametrize("verdict", [fitting(), overflowing()], ids=["fits", "overflows"])
def test_no_line_is_wider_than_a_terminal(verdict) -> None:  # type: ignore[no-untyped-def]
    for text in (report.text(verdict), report.summary(verdict, 3.2)):
        assert text.endswith("\n")
        assert max(map(len, text.splitlines())) <= 110
        assert [line for line in text.splitlines() if line != line.rstrip()] == []


def test_every_ipu_has_a_bar_that_is_as_long_as_it_is_full() -> None:
    verdict = fitting()
    bars = re.findall(r"IPU (\d+) +\[([#=.!]+)\] +([\d.]+%) +(\S+ \S+)", report.text(verdict))
    assert len(bars) == len(verdict.ipus)
    for memory, (ipu, bar, filled, peak) in zip(verdict.ipus, bars, strict=True):
        assert int(ipu) == memory.ipu
        assert filled == percent(memory.filled)
        assert peak == human_bytes(memory.peak_bytes)
        assert abs((bar.count("#") + bar.count("=")) / len(bar) - memory.filled) <= 0.5 / len(bar) + 1e-6
        always = memory.always_live_bytes / memory.usable_bytes
        assert abs(bar.count("#") / len(bar) - always) <= 0.5 / len(bar) + 1e-6


def test_an_ipu_over_its_memory_shows_in_its_bar() -> None:
    bars = re.findall(r"\[([#=.!]+)\]", report.text(overflowing()))
    assert [bar.endswith("!") for bar in bars] == [True, True, False, False]


def test_the_proof_names_buffers_by_size_and_remedies_follow() -> None:
    lines = report.text(overflowing()).splitlines()
    proof = lines.index(next(line for line in lines if line.startswith("proof: ")))
    assert lines[proof + 1].split() == "970.0 MiB in total: these 3 buffers alone exceed its memory".split()
    assert [line.split()[0] for line in lines[proof + 2 : proof + 5]] == ["520.0", "300.0", "150.0"]
    remedies = [line for line in lines if " saves " in line]
    assert [line.split("  ")[1] for line in remedies] == ["fits", "does not fit yet"]
    assert remedies[0].endswith("+412 ms  --optimizer-state off_chip")
    assert not any("proof" in line or " saves " in line for line in report.text(fitting()).splitlines())


def test_a_long_proof_is_cut_with_what_is_left_summed() -> None:
    verdict = overflowing()
    buffers = tuple(Buffer(f"b{number}", "weights", "m", 2**20) for number in range(40))
    overflow = replace(verdict.details.overflows[0], buffers=buffers)
    text = report.text(replace(verdict, details=replace(verdict.details, overflows=(overflow,))))
    assert "28.0 MiB  in 28 smaller ones" in text


def test_times_say_that_they_are_predicted_and_how_well() -> None:
    assert "time (predicted; off by 1.4% on published rows left out of the fit)" in report.text(fitting())
    verdict = fitting()
    unknown = replace(verdict, details=replace(verdict.details, expected_time_error=None))
    assert "time (predicted)\n" in report.text(unknown)


def test_operations_without_a_rule_are_named() -> None:
    assert re.search(r"cumsum +1 in embeddings\.positions +5,120", report.text(fitting()))


def test_a_program_without_an_end_has_no_time_to_train() -> None:
    assert "time to train" in report.text(fitting())
    verdict = replace(fitting(), training_steps=0, time_to_train_s=0.0)
    assert "time to train" not in report.text(verdict)
    assert "whole training" not in report.summary(verdict, 1.0)


def test_packs_show_only_where_samples_are_packed() -> None:
    assert "packs/s" not in report.text(fitting())
    packed = replace(fitting(), packs_per_s=1714.7)
    assert ", 1,715 packs/s," in report.text(packed)


def test_the_summary_sets_measured_beside_predicted() -> None:
    verdict = fitting()
    slow = report.summary(verdict, 2 * verdict.step_s).splitlines()
    assert slow[:2] == report.text(verdict).splitlines()[:2]
    assert "19.1 s (predicted): 3,439 samples/s" in slow[2]
    assert slow[3].endswith("38.1 s (measured): 2.0 times as long")
    assert "25.0% of that time" in report.summary(verdict, verdict.step_s / 4)


def test_a_program_without_a_pipeline_says_so() -> None:
    assert "bounded by IPU 2" in report.text(program((0, 1, 2), 40, depth=4))
    text = report.text(program((0, 1, 2), 40, depth=0))
    assert re.search(
        r"micro batch +\S+ ms +stages run one after another; 40 per weight update, bubble 0.0%", text
    )
    assert "pipeline" not in text


def test_tokens_show_only_where_samples_have_them() -> None:
    assert "tokens/s" in report.text(fitting())
    assert "tokens/s" not in report.text(replace(fitting(), tokens_per_s=0.0))


def test_inference_has_calls_not_weight_updates() -> None:
    verdict = pipelined((0, 1, 2), 9, trained=False)
    text = report.text(replace(verdict, update_s=0.0, training_steps=0))
    assert "one call " in text
    assert "weight update" not in text


def test_the_worst_ipu_is_proved_and_the_others_are_named() -> None:
    verdict = overflowing()
    one = verdict.details.overflows[1]
    less = replace(one, ipu=3, over_bytes=2**20), replace(one, ipu=1, over_bytes=2**21)
    details = replace(verdict.details, overflows=(less[0], one, less[1]))
    text = report.text(replace(verdict, details=details))
    assert text.count("proof: ") == text.count("proof: IPU 0") == 1
    assert "also over: IPU 1 by 2.0 MiB, IPU 3 by 1.0 MiB" in text


def test_a_long_path_is_cut_behind_a_dot() -> None:
    verdict = overflowing()
    buffer = Buffer("b", "weights", "encoder." + "layers.0." * 10 + "norm", 2**30)
    overflow = replace(verdict.details.overflows[0], buffers=(buffer,))
    text = report.text(replace(verdict, details=replace(verdict.details, overflows=(overflow,))))
    assert re.search(r"b in \.\.\.(layers|0)\.[a-z0-9.]+norm$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 110


def test_a_remedy_of_many_flags_breaks_in_front_of_one() -> None:
    verdict = overflowing()
    flags = [f"--flag-{number} {'1 ' * number}1" for number in range(8)]
    remedy = replace(verdict.remedies[0], change=" ".join(flags))
    lines = report.text(replace(verdict, remedies=(remedy,))).splitlines()
    start = next(index for index, line in enumerate(lines) if " saves " in line)
    end = lines.index("", start)
    assert max(map(len, lines[start:end])) <= 110
    parts = [line[line.index("--") :] for line in lines[start:end]]
    assert len(parts) > 1 and " ".join(parts) == remedy.change


def test_a_verdict_near_the_edge_says_between_what_it_lies() -> None:
    near, far = fitting(), fitting()
    assert near.near_edge
    assert "near the edge: 94.7% to 103.7% with 25% less or more of the assumed code, so it may not fit" in (
        report.text(near)
    )
    ipus = tuple(replace(each, fullest_tile_bytes=each.fullest_tile_bytes // 2) for each in far.ipus)
    far = replace(far, ipus=ipus)
    assert not far.near_edge
    assert "near the edge" not in report.text(far)
    assert "near the edge" in report.html(near)
    assert "near the edge" not in report.html(far)


def test_remedies_break_before_a_flag_that_is_too_long_and_costs_have_a_sign() -> None:
    """Their head takes 60 of 110 columns: two flags of 25 and 24 characters fit beside one another."""
    for second, together in ((24, True), (25, False)):
        flags = ["--first ".ljust(25, "1"), "--second ".ljust(second, "2")]
        verdict = replace(overflowing(), remedies=(Remedy(" ".join(flags), 1 << 20, 0.0, True),))
        lines = report.text(verdict).splitlines()
        at = next(number for number, line in enumerate(lines) if " saves " in line)
        assert lines[at].split("  ")[-1] == (" ".join(flags) if together else flags[0])
        assert together or lines[at + 1] == " " * 60 + flags[1]
        assert len(lines[at].split(flags[0])[0]) == 60
        assert "+0.0%" in lines[at] and " +0 " in lines[at]


def test_a_full_ipu_is_not_over_its_memory_and_parts_without_bytes_are_left_out() -> None:
    verdict = fitting()
    full = replace(
        verdict.ipus[0],
        fullest_tile_bytes=verdict.ipus[0].tile_capacity_bytes,
        components={"code": 0, "weights": 5 << 20},
    )
    text = report.text(replace(verdict, ipus=(full, *verdict.ipus[1:])))
    assert re.findall(r"IPU 0 +\[[#=.]+([#=.!])\] +100.0%", text) == ["="]
    assert "  IPU 0  weights 5.0 MiB\n" in text


def test_the_smaller_shares_are_summed_for_all_ipus_and_the_busiest() -> None:
    verdict = fitting()
    found = re.findall(r"^  (\d+) more +(\S+) +(\S+)$", report.text(verdict), re.MULTILINE)
    rests = [shares[6:] for shares in (by_kind(verdict), by_module(verdict)) if shares[6:]]
    assert rests and found == [
        (str(len(rest)), percent(sum(s.of_all for s in rest)), percent(sum(s.of_busiest for s in rest)))
        for rest in rests
    ]
    assert any(of_all != of_busiest for _, of_all, of_busiest in found)
