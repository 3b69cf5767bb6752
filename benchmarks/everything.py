"""Every benchmark at demo scale on the simulator, one after the other, within a time budget."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

import config as configuration
import training

from . import COMMANDS
from .points import SCALES
from .results import Column, Result, host, missing_note, publish
from .trainings import Budget, digest, trained

_DEMO = ("demo_bert", "demo_groupbert")
_COLUMNS = (
    Column("benchmark", "benchmark"),
    Column("rows", "rows", "measured"),
    Column("seconds", "seconds", "measured", "{:.0f}"),
    Column("title", "what it shows"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-folder", default="cache", help="folder for prepared data [cache]")


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    """Runs the subcommands in an order in which later ones reuse trainings of earlier ones."""
    cache = ["--cache-folder", flags.cache_folder]
    study = [*cache, "--device", "simulator", "--runs", str(output / "runs")]
    sheet = _Sheet(output, budget)
    sheet.add("time-to-train", 0.2, ["--device", "simulator"])
    demo = ["--configs", str(SCALES), "--config", "demo"]
    sheet.add("throughput", 0.1, ["--device", "simulator", *cache, *demo])
    sheet.add("acceptance", 0.3, ["--device", "simulator", *cache])
    sheet.add("speed", 0.2, ["--rounds", "3"])
    sheet.add("ablation", 0.6, [*study, "--seeds", "2"])
    sheet.add("pareto", 0.5, [*study, "--seeds", "2"])
    sheet.add("learning-rate", 0.8, [*study, "--seeds", "1"])
    # BERT's final loss is the target, which GroupBERT should reach earlier.
    runs, bert = output / "runs", _demo("demo_bert", flags.cache_folder)
    end = trained(bert, "BERT", runs=runs, budget=budget)
    if end is not None and not end.has_diverged:
        reached_nats = math.ceil(end.validation_loss * 1e4) / 1e4  # rounded down, BERT would miss it
        target = ["--recipes", str(SCALES), "--target-loss", str(reached_nats)]
        sheet.add("time-to-train", 0.9, [*study, *target, "--configs", *_DEMO])
    folders = {name: runs / digest(_demo(name, flags.cache_folder)) for name in _DEMO}
    if all((folder / "checkpoints").is_dir() for folder in folders.values()):
        pairs = [f"{name}={folder}" for name, folder in folders.items()]
        sheet.add("attention", 1.0, ["--checkpoints", *pairs])
    return sheet.publish()


class _Sheet:
    """Collects the subcommands' results, and writes all of them to one page."""

    def __init__(self, output: Path, budget: Budget) -> None:
        self._output, self._budget = output, budget
        self._rows: List[Dict[str, Any]] = []
        self._results: List[Result] = []
        self._missing: List[str] = []

    def add(self, command: str, share: float, arguments: Sequence[str]) -> None:
        """Runs one subcommand with a fraction `share` of the remaining budget."""
        if self._budget.is_spent:
            self._missing.append(command)
            return
        benchmark = COMMANDS[command].load()
        parser = configuration.FlagParser()
        benchmark.add_flags(parser)
        began = time.perf_counter()
        result = benchmark.run(parser.parse_args(list(arguments)), self._output, self._budget.share(share))
        self._results.append(result)
        self._rows.append(
            {
                "benchmark": result.name,
                "rows": len(result.rows),
                "seconds": time.perf_counter() - began,
                "title": result.title,
            }
        )

    def publish(self) -> Result:
        result = Result("all", "All benchmarks", _COLUMNS, self._rows, missing_note(self._missing))
        publish(result, self._output, self._draw)
        page = self._output / "all.md"
        training.write_atomically(page, self._page(result))
        print(f"{page}: every table and picture on one page", flush=True)
        return result

    def _page(self, summary: Result) -> str:
        machine = ", ".join(f"{key} {value}" for key, value in host().items())
        head = f"# Every benchmark at demo scale\n\n`python run_benchmark.py all`, on: {machine}.\n"
        return "\n".join([head, *(result.markdown() for result in (*self._results, summary))])

    def _draw(self, figure: Any) -> None:
        from matplotlib import image

        lines = max(-(-len(self._rows) // 3), 1)
        figure.set_size_inches(15, 3.5 * lines)
        panels = figure.subplots(lines, 3, squeeze=False).flat
        for axes, row in zip(panels, [*self._rows, *[None] * 3]):
            axes.axis("off")
            if row is not None:
                axes.imshow(image.imread(self._output / f"{row['benchmark']}.png"))


def _demo(name: str, cache_folder: str) -> configuration.Config:
    overrides: Dict[str, object] = {"device": "simulator", "cache_folder": cache_folder}
    return configuration.load(name, path=SCALES, overrides=overrides)
