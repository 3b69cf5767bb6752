"""The simulator beside plain PyTorch and Hugging Face's Trainer, on this host: ratios of step times.

All sides compute the same model, batch and optimizer. A and B alternate, each in a process of its own, and a
ratio is that of a neighbouring pair, so a busy machine slows both: trust the ratios, not the times.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import command_line
import config as configuration
import training
from config import Config

from .apart import Apart
from .contenders import Contender, plain_loop, simulator, trainer
from .results import Column, Result, missing_note, publish
from .statistics import quartiles
from .trainings import Budget

# Never slower than what it is compared with.
_GOAL = 1.0
# Until the allocator has settled: the first steps fetch their memory from the system.
_WARM_UP_ROUNDS = 3

# Name -> the others, model, dtype and batch: sequences of a micro batch, micro batches of an update.
_COMPARISONS: Tuple[Tuple[str, str, str, str, int, int], ...] = tuple(
    (f"{size}_{dtype}_vs_{other}", other, size, dtype, batch, 1)
    for size, batch in (("mini", 16), ("medium", 8))
    for dtype in ("float32", "bfloat16")
    for other in ("plain_loop", "trainer")
) + (("accumulation_64_vs_plain_loop", "plain_loop", "tiny", "float32", 1, 64),)

_COLUMNS = (
    Column("name", "simulator against"),
    Column("rounds", "rounds", "given"),
    Column("ours_s", "simulator s/step", "measured", "{:.4f}"),
    Column("theirs_s", "other s/step", "measured", "{:.4f}"),
    Column("median", "ratio", "derived", "{:.3f}"),
    Column("low", "quartile", "derived", "{:.3f}"),
    Column("high", "quartile", "derived", "{:.3f}"),
    Column("goal", "goal", "given", "{:.2f}"),
)
_SIZES = {"tiny": (128, 2, 2), "mini": (256, 4, 4), "medium": (512, 8, 8)}
_LENGTHS = {"tiny": (32, 5, 1024), "mini": (128, 20, 30522), "medium": (128, 20, 30522)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    names = [comparison[0] for comparison in _COMPARISONS]
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios alone here too")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each comparison [7]")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="comparisons [all]")


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    if flags.rounds < 1:
        raise configuration.ConfigError(f"--rounds {flags.rounds}: at least 1")
    command_line.choose_device(_config("tiny", 1, 1))
    rows: List[Dict[str, Any]] = []
    missing: List[str] = []
    chosen = [comparison for comparison in _COMPARISONS if comparison[0] in flags.only]
    with Apart("the simulator") as our_process, Apart("the other side") as their_process:
        for name, other, size, dtype, batch, accumulation in chosen:
            if budget.is_spent:
                missing.append(name)
                continue
            config = _config(size, batch, accumulation)
            ours = our_process.contender(simulator, config, dtype)
            theirs = their_process.contender(plain_loop if other == "plain_loop" else trainer, config, dtype)
            rows.append({"name": name, **compare(ours, theirs, flags.rounds, budget)})
            print(_COLUMNS[0].text(rows[-1]), f"{rows[-1]['median']:.3f}", flush=True)
    ratios = {
        row["name"]: {key: row[key] for key in ("median", "low", "high", "goal", "better")} for row in rows
    }
    result = Result(
        "speed",
        "Host speed of the simulator's training step",
        _COLUMNS,
        rows,
        [
            "Ratio: the other's time over the simulator's in a neighbouring pair, median and quartiles; "
            "above 1 the simulator is faster. Both take the same model and batch, no dropout and AdamW, "
            "which is fused in both. Each has a process of its own, with the allocator as its user finds it.",
            *missing_note(missing),
        ],
        extra={"ratios": ratios},
    )
    publish(result, output, lambda figure: _draw(figure, rows))
    if flags.json is not None:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        training.write_atomically(flags.json, json.dumps({"ratios": ratios}, indent=2) + "\n")
    return result


def compare(
    ours: Contender, theirs: Contender, rounds: int, budget: Optional[Budget] = None
) -> Dict[str, Any]:
    """Alternates the two, who begins too, after rounds that aren't counted; at least one is."""
    for _ in range(_WARM_UP_ROUNDS):
        ours.step_s()
        theirs.step_s()
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = theirs.step_s()
            first = ours.step_s()
        else:
            first = ours.step_s()
            second = theirs.step_s()
        pairs.append((first, second))
        if budget is not None and budget.is_spent:
            break
    low, median, high = quartiles([second / first for first, second in pairs])
    return {
        "rounds": len(pairs),
        "ours_s": quartiles([first for first, _ in pairs])[1],
        "theirs_s": quartiles([second for _, second in pairs])[1],
        "median": median,
        "low": low,
        "high": high,
        "goal": _GOAL,
        "better": "higher",
    }


def _config(size: str, batch: int, accumulation: int) -> Config:
    hidden, layers, heads = _SIZES[size]
    length, masks, vocabulary = _LENGTHS[size]
    return Config(
        model="bert",
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        vocab_size=vocabulary,
        sequence_length=length,
        mask_tokens=masks,
        micro_batch_size=batch,
        gradient_accumulation=accumulation,
        training_steps=1,
        learning_rate=1e-4,
        lr_schedule="constant",
        weight_decay=0.01,
        device="simulator",
        target="pod4",
        ipus_per_replica=1,
        layers_per_ipu=(layers,),
    )


def _draw(figure: Any, rows: Sequence[Dict[str, Any]]) -> None:
    axes = figure.subplots()
    names = [row["name"] for row in rows]
    medians = [row["median"] for row in rows]
    spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    axes.barh(names, medians, xerr=spread, capsize=4)
    axes.axvline(_GOAL, color="k", ls="--", lw=1)
    axes.invert_yaxis()
    axes.set(xlabel="other's step time over the simulator's (higher: simulator faster)", title="Host speed")
