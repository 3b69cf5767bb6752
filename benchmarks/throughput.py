"""Training throughput of a recipe on the current device: samples/s, tokens/s and utilisation."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

import command_line
import config as configuration
import ipu

from .results import Column, Result, missing_note, publish, quartiles
from .steps import DATA, flops_per_sample, samples_per_call, timed_steps
from .trainings import Budget

# Read as files, because the simulator's package can't be imported on an IPU host.
_TARGETS = ipu.DROP_IN / "ipu_simulator" / "targets"
_COLUMNS = (
    Column("config", "configuration"),
    Column("data", "data"),
    Column("calls", "calls", "given"),
    Column("samples_per_s", "samples/s", "measured", "{:.1f}"),
    Column("samples_per_s_low", "quartile", "measured", "{:.1f}"),
    Column("samples_per_s_high", "quartile", "measured", "{:.1f}"),
    Column("tokens_per_s", "tokens/s", "measured", "{:,.0f}"),
    Column("flops_per_s", "FLOP/s", "derived", "{:.3g}"),
    Column("utilisation", "utilisation", "derived", "{:.1%}"),
    Column("waiting", "waits for data", "measured", "{:.1%}"),
)
_PEAK_SIZE = 1024


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="demo", help="a recipe of configs.yml [demo]")
    parser.add_argument("--configs", type=Path, default=configuration.CONFIGS, help="another file of recipes")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="sources to time [all]")
    parser.add_argument("--calls", type=int, default=20, help="timed device calls [20]")
    parser.add_argument("--warm-up", type=int, default=3, help="device calls before them [3]")
    parser.set_defaults(instances=1, inference=False)
    configuration.add_flags(parser)


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    if flags.calls < 1 or flags.warm_up < 0:
        raise configuration.ConfigError(
            f"--calls {flags.calls} --warm-up {flags.warm_up}: at least 1 and at least 0 are needed"
        )
    config = command_line.load_config(flags, "pretraining")
    device = command_line.choose_device(config)
    samples, flops = samples_per_call(config), flops_per_sample(config)
    what = "packed rows" if config.packed_data else "sequences"
    flops_per_token = flops * config.sequences_per_row / config.sequence_length
    rows: List[Dict[str, Any]] = []
    missing: List[str] = []
    if device.name == "simulator":
        peak, whose = _host_peak(), f"float32 product of {_PEAK_SIZE}x{_PEAK_SIZE} on this host (measured)"
    else:
        ipus = config.ipus_per_replica * config.replication_factor
        peak, whose = peak_flops(config.target) * ipus, f"float16 peak of {ipus} IPUs of {config.target}"
    for source in flags.data:
        if budget.is_spent:
            missing.append(source)
            continue
        steps = timed_steps(config, device, source, flags.warm_up + flags.calls)[flags.warm_up :]
        counted = sum(step.sequences for step in steps) / len(steps)
        # Of a row, with its padding, for each of its sequences.
        tokens = config.sequence_length * samples / counted
        low, median, high = quartiles([step.sequences / step.total_s for step in steps])
        rows.append(
            {
                "config": flags.config,
                "data": source,
                "calls": flags.calls,
                "samples_per_s": median,
                "samples_per_s_low": low,
                "samples_per_s_high": high,
                "tokens_per_s": median * tokens,
                "flops_per_s": median * tokens * flops_per_token,
                "utilisation": median * tokens * flops_per_token / peak,
                "waiting": sum(step.data_s for step in steps) / sum(step.total_s for step in steps),
            }
        )
    result = Result(
        "throughput",
        f"Training throughput on {device.name}",
        _COLUMNS,
        rows,
        [
            f"Median and quartiles of {flags.calls} device calls after {flags.warm_up} warm-up calls; each "
            f"is {samples} {what}. Compilation, evaluation and checkpoints are not included.",
            f"Utilisation: {flops:.3g} FLOPs per sequence (forward and backward, derived) over {peak:.3g} "
            f"FLOP/s, the {whose}.",
            *missing_note(missing),
        ],
        extra={"device": device.name, "peak_flops_per_s": peak, "peak_of": whose},
    )
    publish(result, output, lambda figure: _draw(figure, rows))
    return result


def peak_flops(target: str) -> float:
    """Peak FLOP/s of one IPU of `target`: its matrix units in float16, two FLOPs per multiply-add (derived
    from
    the facts in its target file, which have their sources there)."""
    facts = _facts(target)
    per_cycle = facts["half_macs_per_cycle"]["value"] * facts["tiles_per_ipu"]["value"]
    return float(2.0 * per_cycle * facts["clock_hz"]["value"])


def _facts(name: str) -> Dict[str, Any]:
    content = json.loads((_TARGETS / f"{name}.json").read_text(encoding="utf-8"))
    parent = content.pop("extends", None)
    return {**(_facts(parent) if parent else {}), **content}


def _host_peak() -> float:
    """FLOP/s of this host's float32 matrix product, the fastest of several (measured)."""
    left, right = torch.randn(_PEAK_SIZE, _PEAK_SIZE), torch.randn(_PEAK_SIZE, _PEAK_SIZE)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - began)
    return 2 * _PEAK_SIZE**3 / min(times)


def _draw(figure: Any, rows: Sequence[Dict[str, Any]]) -> None:
    axes = figure.subplots()
    medians = [row["samples_per_s"] for row in rows]
    below = [row["samples_per_s"] - row["samples_per_s_low"] for row in rows]
    above = [row["samples_per_s_high"] - row["samples_per_s"] for row in rows]
    axes.bar([row["data"] for row in rows], medians, yerr=[below, above], capsize=6)
    axes.set(xlabel="data", ylabel="samples/s (measured)", title="Training throughput, median and quartiles")
