"""Ten minutes on an IPU host: compares losses with the simulator's, and time and memory with the verdict.

A process uses one device, so the simulator runs in separate processes. It needs a newer Python than
PopTorch's wheel: --simulator-python names one in which this program's requirements.txt is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import command_line
import config as configuration
import ipu
import model as models
import run_pretraining
import training
from config import Config, ConfigError
from training.metrics_file import read_metrics

from .points import SCALES
from .results import Column, Result, publish, quartiles
from .steps import timed_steps
from .trainings import Budget

# Largest relative difference of a loss that counts as agreement: roundings fall differently.
_LOSS_TOLERANCE = 0.02
# Tolerance of the cost model: twice its mean error on published results is far less (docs/accuracy.md).
_PREDICTION_TOLERANCE = 0.15
_WARM_UP, _TIMED = 1, 3
ROOT = Path(run_pretraining.__file__).parent

_COLUMNS = (
    Column("check", "check"),
    Column("unit", "unit"),
    Column("here", "this device", "measured", "{:.5g}"),
    Column("expected", "expected", "", "{:.5g}"),
    Column("expected_from", "by"),
    Column("difference", "difference", "derived", "{:+.2%}"),
    Column("tolerance", "tolerance", "given", "{:.0%}"),
    Column("outcome", "outcome"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", help="the recipe whose step is timed [bert_base_128_pod16; on the simulator a small one]"
    )
    parser.add_argument("--configs", type=Path, default=configuration.CONFIGS, help="file of recipes")
    parser.add_argument("--device", default="auto", help="auto, ipu, ipu-model or simulator [auto]")
    parser.add_argument("--cache-folder", default="cache", help="folder for prepared data [cache]")
    parser.add_argument(
        "--simulator-python", default=sys.executable, metavar="FILE", help="Python that runs the simulator"
    )


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    overrides = {"device": flags.device, "cache_folder": flags.cache_folder}
    small = configuration.load("acceptance", path=SCALES, overrides=overrides)
    device = command_line.choose_device(small)
    timed_name, timed = "acceptance", small
    if flags.config is not None or device.name == "ipu":
        timed_name = flags.config or "bert_base_128_pod16"
        timed = configuration.load(timed_name, path=flags.configs, overrides={"device": flags.device})
    if timed.task != "pretraining":
        raise ConfigError(f"{timed_name} is a {timed.task} recipe; acceptance times pretraining recipes")
    folder = output / "acceptance"
    here = _losses(small, folder / "here", device)
    expected = _simulated_losses(small, folder / "simulator", flags.simulator_python, device)
    rows = [
        check(f"loss of update {number}", "nats", mine, theirs, "simulator, measured", _LOSS_TOLERANCE)
        for number, (mine, theirs) in enumerate(zip(here, expected), 1)
    ]
    rows += _memory_checks(small, folder, device, flags.simulator_python)
    step_s: Optional[float] = None
    if device.name != "ipu-model" and not budget.is_spent:
        steps = timed_steps(timed, device, "generated", _WARM_UP + _TIMED)[_WARM_UP:]
        step_s = quartiles([step.total_s for step in steps])[1] / timed.device_iterations
    verdict = _verdict(timed, timed_name, folder / "verdict_timed", flags.simulator_python)
    # The simulator's host time says nothing about an IPU's.
    measured_s = step_s if device.name == "ipu" else None
    rows.append(
        check(
            f"weight update of {timed_name}",
            "s",
            measured_s,
            verdict["step_s"],
            "verdict, predicted",
            _PREDICTION_TOLERANCE,
        )
    )
    result = Result(
        "acceptance",
        f"Acceptance on {device.name} ({device.implementation}, poptorch {device.version})",
        _COLUMNS,
        rows,
        _notes(device, rows, step_s, output),
        extra={"device": device.name, "host_step_s": step_s, "verdict": verdict},
    )
    _write_row(output, timed_name, timed, device, step_s)
    publish(result, output, lambda figure: _draw(figure, here, expected, device.name))
    return result


def _losses(config: Config, folder: Path, device: ipu.DeviceChoice) -> List[float]:
    """Trains in `folder`; on an IPU with a profile, which `_memory_checks` reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if device.name == "ipu":
        config = replace(config, profile_folder=str(folder / "profile"))
    with (folder / "log.txt").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        run_pretraining.main(_command(config, folder, "acceptance"))
    return _losses_in(folder)


def _simulated_losses(config: Config, folder: Path, python: str, device: ipu.DeviceChoice) -> List[float]:
    shutil.rmtree(folder, ignore_errors=True)
    command_line.run_on_simulator(python, as_on(device, config), "acceptance", folder)
    return _losses_in(folder)


def as_on(device: ipu.DeviceChoice, config: Config) -> Config:
    """The configuration with which the simulator computes as the device does: like is compared with like.

    An IPU rounds to float16 and computes GELU in its tanh form.
    """
    return config if device.name == "simulator" else replace(config, simulator_precision="ipu-float16")


def _losses_in(folder: Path) -> List[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]


def _command(config: Config, folder: Path, name: str) -> List[str]:
    """Arguments of run_pretraining; the recipe is passed in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yml"
    recipe.write_text(config.to_yaml(name), encoding="utf-8")
    return ["--configs", str(recipe.resolve()), "--config", name, "--output", str(folder.resolve())]


def _verdict(config: Config, name: str, folder: Path, python: str) -> Dict[str, Any]:
    # A dry run is for the IPU's program, whatever the device; only the simulator can make it.
    command_line.run_on_simulator(python, config, name, folder, "--dry-run")
    verdict: Dict[str, Any] = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    return verdict


def _memory_checks(
    config: Config, folder: Path, device: ipu.DeviceChoice, python: str
) -> List[Dict[str, Any]]:
    """Peak memory of each IPU compared with the verdict's; measured only on IPUs with PopVision's pva."""
    predicted = _verdict(config, "acceptance", folder / "verdict", python)["ipus"]
    measured: Mapping[int, float] = {}
    if device.name == "ipu":
        measured = _profiled_bytes(folder / "here" / "profile", len(predicted) * config.replication_factor)
    return [
        check(
            f"memory of IPU {entry['ipu']}",
            "bytes",
            measured.get(entry["ipu"]),
            entry["peak_bytes"],
            "verdict, predicted",
            _PREDICTION_TOLERANCE,
        )
        for entry in predicted
    ]


def _profiled_bytes(folder: Path, ipus: int) -> Dict[int, float]:
    """Bytes used per IPU, from the first PopVision report below `folder`; empty if there is none."""
    try:
        import pva  # part of the SDK
    except ImportError:
        return {}
    reports = sorted(folder.rglob("profile.pop"))
    if not reports:
        return {}
    tiles = list(pva.openReport(str(reports[0])).compilation.tiles)
    each = len(tiles) // ipus
    used = [float(tile.memory.total.excludingGaps) for tile in tiles]
    return {number: sum(used[number * each : (number + 1) * each]) for number in range(ipus)}


def check(
    check: str, unit: str, here: Optional[float], expected: float, by: str, tolerance: float
) -> Dict[str, Any]:
    row: Dict[str, Any] = {
        "check": check,
        "unit": unit,
        "here": here,
        "expected": expected,
        "expected_from": by,
        "tolerance": tolerance,
        "outcome": "not measured",
    }
    if here is not None:
        row["difference"] = here / expected - 1
        row["outcome"] = "agrees" if abs(row["difference"]) <= tolerance else "DIFFERS"
    return row


def _notes(
    device: ipu.DeviceChoice, rows: Sequence[Mapping[str, Any]], step_s: Optional[float], output: Path
) -> List[str]:
    agree = sum(row["outcome"] == "agrees" for row in rows)
    differ = sum(row["outcome"] == "DIFFERS" for row in rows)
    notes = [f"{agree} checks agree, {differ} differ, {len(rows) - agree - differ} were not measured."]
    if device.name == "ipu":
        notes.append(f"Please send back {output / 'acceptance_row.csv'} and {output / 'acceptance.json'}.")
    else:
        timing = "" if step_s is None else f" (a weight update took {step_s:.3f} s of this host, measured)"
        notes.append(
            f"This was {device.name}, not an IPU: it shows that the test works{timing}. Don't send its row."
        )
    return notes


def published_row(name: str, config: Config, device: ipu.DeviceChoice, step_s: float) -> Dict[str, object]:
    """Our measurement as a row of the file of published measurements: column -> value.

    `step_s`: seconds per weight update, without compilation. A row from a simulator says in `source` that it
    wasn't measured on an IPU.
    """
    source = f"acceptance test, {name}"
    if device.name != "ipu":
        source += f"; {device.name} on a host, NOT AN IPU"
    return {
        "id": f"acceptance-{name}",
        "target": config.target,
        "framework": "PopTorch",
        "sdk": device.version,
        "model": _model_name(config),
        "sequence_length": config.sequence_length,
        "packed": int(config.packed_data),
        "mask_tokens": config.row_mask_tokens,
        "micro_batch_size": config.micro_batch_size,
        "gradient_accumulation": config.gradient_accumulation,
        "replication_factor": config.replication_factor,
        "layers_per_ipu": _words(config.layers_per_ipu),
        "optimizer_state": config.optimizer_state,
        "replicated_tensor_sharding": int(config.replicated_tensor_sharding),
        "matmul_proportion": _words(config.matmul_proportion),
        "embedding_serialization_factor": config.embedding_serialization_factor,
        "step_s": round(step_s, 6),
        "source": source,
    }


def _words(values: Sequence[object]) -> str:
    return " ".join(str(value) for value in values)


def _model_name(config: Config) -> str:
    """Name of a published size, such as bert-base; otherwise family, layers and hidden size."""
    for name, preset in models.PRESETS.items():
        sizes = (preset.hidden_size, preset.num_layers, preset.num_heads)
        if name.startswith(f"{config.model}_") and sizes == (
            config.hidden_size,
            config.num_layers,
            config.num_heads,
        ):
            return name.replace("_", "-")
    return f"{config.model}-{config.num_layers}x{config.hidden_size}"


def _write_row(
    output: Path, name: str, config: Config, device: ipu.DeviceChoice, step_s: Optional[float]
) -> None:
    if step_s is None:
        return
    row = published_row(name, config, device, step_s)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    output.mkdir(parents=True, exist_ok=True)
    training.write_atomically(output / "acceptance_row.csv", text.getvalue())


def _draw(figure: Any, here: Sequence[float], expected: Sequence[float], device: str) -> None:
    axes = figure.subplots()
    updates = range(1, len(expected) + 1)
    axes.plot(updates, expected, "o-", label="simulator")
    axes.plot(range(1, len(here) + 1), here, "x--", label=f"this device: {device}")
    axes.set(xlabel="weight updates", ylabel="loss, nats (measured)", title="The first updates")
    axes.grid(alpha=0.3)
    axes.legend()
