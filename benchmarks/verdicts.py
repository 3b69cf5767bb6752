"""Verdicts on every published recipe, and on programs that are known to fit or not to fit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import config as configuration
import training
from config import Config
from planning import dry_run

from .downstream import GLUE_RECIPE, MACHINES, glue_verdicts
from .results import Column, Result, missing_note, publish
from .searched import SEARCHED, searched_page
from .trainings import Budget

_COLUMNS = (
    Column("config", "configuration"),
    Column("target", "machine"),
    Column("layers", "layers per IPU", "given"),
    Column("fits", "fits", "predicted"),
    Column("fullest", "fullest tile", "predicted", "{:.0%}"),
    Column("cycle_ms", "cycle, ms", "predicted", "{:.2f}"),
    Column("step_s", "s/update", "predicted", "{:.3f}"),
    Column("samples_per_s", "sequences/s", "predicted", "{:,.0f}"),
    Column("utilisation", "utilisation", "predicted", "{:.1%}"),
    Column("hours", "hours", "predicted", "{:.1f}"),
)
# BERT Large and GroupBERT Base, by phase: according to the GroupBERT article, their masked-LM losses are
# equal.
_COMPARED = {
    "PopTorch recipes": (
        ("bert_large_128_pod16", "groupbert_base_128_pod16"),
        ("bert_large_512_pod16", "groupbert_base_512_pod16"),
    ),
    "GroupBERT as its TensorFlow 1 trainer had it": (
        ("bert_large_128_pod16", "groupbert_base_128_pod16_tf1"),
        ("bert_large_512_pod16", "groupbert_base_384_pod16_tf1"),
    ),
}
_OWN = ("test_", "demo", "squad_demo", "glue_demo")  # prefixes of recipes of this project, not published
# Recipes of the table that were never published, so nothing is known about their fit.
_NEVER_RUN = ("groupbert_base_128_packed", "groupbert_base_512_packed", "groupbert_base_128_pod16_fast")
_PUBLISHED = "about 2 (published: half the training time, Graphcore's GroupBERT article, January 2022)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--configs", nargs="+", metavar="NAME", help="recipes [all published ones]")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also write the page of the documentation"
    )


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    names = flags.configs or [name for name in configuration.names() if not name.startswith(_OWN)]
    verdicts: Dict[str, Any] = {}
    for name in names:
        if not budget.is_spent:
            verdicts[name] = dry_run.verdict_of(configuration.load(name), name)
    missing = [name for name in names if name not in verdicts]
    rows = [_row(name, configuration.load(name), verdict) for name, verdict in verdicts.items()]
    ratios = _ratios({row["config"]: row for row in rows})
    tasks: List[Dict[str, Any]] = []
    for target in MACHINES if GLUE_RECIPE in verdicts else ():
        if budget.is_spent:
            missing.append(f"GLUE on {target}")
        else:
            tasks += [_row(config.glue_task, config, verdict) for config, verdict in glue_verdicts(target)]
    searched: List[str] = []
    if set(SEARCHED) <= set(verdicts):
        if budget.is_spent:
            missing.append("placements of the search")
        else:
            searched = searched_page()
    notes = [*ratios, *missing_note(missing)]
    result = Result("verdicts", "Verdicts on the published recipes", _COLUMNS, rows + tasks, notes)
    publish(result, output, lambda figure: _draw(figure, rows))
    if flags.markdown is not None:
        training.write_atomically(flags.markdown, _page(rows, tasks, ratios, searched, _known_fits(verdicts)))
        print(flags.markdown)
    return result


def _row(name: str, config: Config, verdict: Any) -> Dict[str, Any]:
    return {
        "config": name,
        "target": verdict.target,
        "layers": " ".join(map(str, config.layers_per_ipu)),
        "fits": "yes" if verdict.fits else "NO",
        "fullest": max(memory.filled for memory in verdict.ipus),
        "cycle_ms": verdict.pipeline.cycle_s * 1e3,
        "step_s": verdict.step_s,
        "samples_per_s": verdict.samples_per_s,
        "utilisation": verdict.utilisation,
        "hours": verdict.time_to_train_s / 3600,
    }


def _ratios(rows: Mapping[str, Mapping[str, Any]]) -> List[str]:
    """BERT Large's time over GroupBERT Base's, for equal sequences: as many as in BERT Large's recipe."""
    sentences = []
    for whose, phases in _COMPARED.items():
        if not all(name in rows for phase in phases for name in phase):
            continue
        parts, totals = [], [0.0, 0.0]
        for large, base in phases:
            sequences = _sequences(configuration.load(large))
            hours = [sequences / rows[name]["samples_per_s"] / 3600 for name in (large, base)]
            totals = [total + each for total, each in zip(totals, hours)]
            parts.append(f"{hours[0] / hours[1]:.2f} ({large} {hours[0]:.1f} h, {base} {hours[1]:.1f} h)")
        sentences.append(
            f"BERT Large's time over GroupBERT Base's, equal sequences, {whose} (predicted): phase 1 "
            f"{parts[0]}; phase 2 {parts[1]}; both phases {totals[0] / totals[1]:.2f} ({totals[0]:.1f} h, "
            f"{totals[1]:.1f} h). Beside it: {_PUBLISHED}."
        )
    return sentences


def _sequences(config: Config) -> int:
    return config.training_steps * config.sequences_per_step


def _known_fits(verdicts: Mapping[str, Any]) -> str:
    from planning import known_fits as known

    def memory_of(name: str, changes: Mapping[str, Any]) -> Any:
        if not changes:
            return verdicts[name].ipus
        config = configuration.load(name, overrides=changes)
        return dry_run.assess(config, name, dry_run.program_of(config)).ipus

    ran = [name for name in verdicts if not name.startswith(_NEVER_RUN)]
    return str(known.markdown(known.judge(known.cases(ran), memory_of)))


def _table(rows: Sequence[Mapping[str, Any]]) -> List[str]:
    lines = [f"| {' | '.join(column.heading for column in _COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    return lines + [f"| {' | '.join(column.text(row) for column in _COLUMNS)} |" for row in rows]


def _page(
    rows: Sequence[Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    ratios: Sequence[str],
    searched: Sequence[str],
    known_fits: str,
) -> str:
    return "\n".join(
        [
            "# Verdicts on the published recipes",
            "",
            "Generated by `python run_benchmark.py verdicts --markdown docs/verdicts.md`; don't edit. Every",
            "figure is predicted by the models that [limits.md](limits.md) describes and",
            "[accuracy.md](accuracy.md) holds against measurements; none was measured on an IPU here. Hours",
            "are those of the recipe's own weight updates. The packed GroupBERT recipes and",
            "`groupbert_base_128_pod16_fast` are this project's.",
            "",
            *_table(rows),
            "",
            "## GLUE, task by task",
            "",
            f"`{GLUE_RECIPE}` with `--glue-task` and three passes over the task's training set, as",
            "published; on pod16 with four replicas and an accumulation of 8. MNLI has three classes, STS-B",
            "is a regression. [downstream.md](downstream.md) has inference.",
            "",
            *_table(tasks),
            "",
            "## GroupBERT Base beside BERT Large",
            "",
            *(f"- {sentence}" for sentence in ratios),
            "",
            *searched,
            "## What is known to fit, and what not",
            "",
            "In sample: sizes of code and the imbalance of tiles were chosen on these programs, so that the",
            "matrix doesn't show how often the model is right. [accuracy.md](accuracy.md#memory) has that of",
            "cases that no constant of memory was chosen on.",
            "",
            known_fits.rstrip(),
            "",
        ]
    )


def _draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes = figure.subplots()
    places: Sequence[Tuple[int, Mapping[str, Any]]] = list(enumerate(reversed(rows)))
    axes.barh([place for place, _ in places], [row["fullest"] for _, row in places], color="tab:blue")
    axes.axvline(1, color="tab:red", linewidth=1)
    axes.set_yticks([place for place, _ in places], [row["config"] for _, row in places], fontsize=4)
    axes.set_xlabel("fullest tile over its memory (predicted)")
