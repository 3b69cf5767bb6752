"""Predicted speed of fine-tuning and of inference on POD4 and POD16, task by task."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import config as configuration
import training
from config import Config
from ipu.options import DevicePlan
from ipu.placement import machine_ipus
from model import PRESETS, TASKS, EmbeddingModel, FillMaskModel
from planning import dry_run, programs
from planning.inference import predict

from .results import Column, Result, missing_note, publish
from .trainings import Budget

_COLUMNS = (
    Column("what", "task"),
    Column("model", "model"),
    Column("target", "machine"),
    Column("layers", "layers per IPU", "given"),
    Column("replicas", "replicas", "given"),
    Column("fits", "fits", "predicted"),
    Column("fullest", "fullest IPU", "predicted", "{:.0%}"),
    Column("latency_ms", "latency, ms", "predicted", "{:.2f}"),
    Column("samples_per_s", "sequences/s", "predicted", "{:,.0f}"),
    Column("hours", "hours", "predicted", "{:.2f}"),
)
MACHINES = ("pod4", "pod16")
GLUE_RECIPE = "glue_groupbert_base_384"
_MICRO_BATCH, _SHORT, _LONG = 8, 128, 384


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also write the page of the documentation"
    )


def run(flags: argparse.Namespace, output: Path, budget: Budget) -> Result:
    rows: List[Dict[str, Any]] = []
    missing: List[str] = []
    for target in MACHINES:
        for name, made in ((f"GLUE, {target}", _glue), (f"inference, {target}", _inference)):
            if budget.is_spent:
                missing.append(name)
            else:
                rows += made(target)
    notes = [
        f"GLUE is {GLUE_RECIPE} with three passes over the task's training set, as published; on pod16 with "
        f"four replicas and an accumulation of 8. Inference has micro batches of {_MICRO_BATCH} sequences of "
        f"{_SHORT} tokens ({_LONG} for answers), and as many replicas as the machine has room for; the "
        "latency is that of a micro batch.",
        *missing_note(missing),
    ]
    result = Result("downstream", "Fine-tuning and inference", _COLUMNS, rows, notes)
    publish(result, output, lambda figure: _draw(figure, rows))
    if flags.markdown is not None:
        training.write_atomically(flags.markdown, _page(result))
        print(flags.markdown)
    return result


def glue_verdicts(target: str) -> Iterator[Tuple[Config, Any]]:
    """The configuration of each task of GLUE on a machine, with its verdict.

    Tasks of as many classes have the same program, and differ in the number of their examples.
    """
    captured: Dict[object, Tuple[Any, Any]] = {}

    def capture(config: Config) -> Tuple[Any, Any]:
        keys = tuple(entry for entry in programs.key_of(config) if entry[0] != "glue_task")
        one = len(config.class_names), keys
        if one not in captured:
            captured[one] = dry_run.program_of(config)
        graph, settings = captured[one]
        return graph, programs.with_options(settings, config)

    changes: Dict[str, object] = {"target": target}
    if target != "pod4":
        changes.update(replication_factor=4, gradient_accumulation=8)
    for task in sorted(TASKS["glue"].training_examples):
        config = configuration.load(GLUE_RECIPE, overrides={**changes, "glue_task": task})
        yield config, dry_run.verdict_of(config, GLUE_RECIPE, capture=capture)


def _glue(target: str) -> Iterator[Dict[str, Any]]:
    for config, verdict in glue_verdicts(target):
        yield {
            "what": f"fine-tuning, {config.glue_task}",
            "model": "groupbert_base",
            "target": target,
            "layers": " ".join(map(str, config.layers_per_ipu)),
            "replicas": config.replication_factor,
            "fits": "yes" if verdict.fits else "NO",
            "fullest": max(memory.peak_bytes / memory.capacity_bytes for memory in verdict.ipus),
            "samples_per_s": verdict.samples_per_s,
            "hours": verdict.time_to_train_s / 3600,
        }


# Kind of inference: the task whose configuration it has, its model's class, tokens.
_KINDS: Tuple[Tuple[str, str, Any, int], ...] = (
    ("fill-mask", "pretraining", FillMaskModel, _SHORT),
    ("answers", "squad", TASKS["squad"], _LONG),
    ("classes", "glue", TASKS["glue"], _SHORT),
    ("embeddings", "glue", EmbeddingModel, _SHORT),
)


def _inference(target: str) -> Iterator[Dict[str, Any]]:
    for name in ("bert_base", "groupbert_base", "bert_large"):
        for kind, task, model, tokens in _KINDS:
            shape = replace(PRESETS[name], hidden_dropout=0.0)
            given: Dict[str, object] = {"target": target, "micro_batch_size": _MICRO_BATCH}
            ipus = training.inference_config(shape, task, tokens, given).ipus_per_replica
            given["replication_factor"] = machine_ipus()[target] // ipus
            config = training.inference_config(shape, task, tokens, given)
            plan = config.section(DevicePlan, head=model.place)
            sizes = {"B": _MICRO_BATCH, "S": tokens, "M": 1}
            shapes = [tuple(sizes[letter] for letter in one) for one in model.inputs[:4]]
            if model.task in ("squad", "glue"):  # without labels
                shapes = shapes[:3]

            def build(model: Any = model, shape: Any = shape) -> Any:
                if model is FillMaskModel:
                    return model(TASKS["pretraining"](shape), 5)
                return model(shape)

            predicted = predict(build, config, plan, shapes)
            yield {
                "what": f"inference, {kind}",
                "model": name,
                "target": target,
                "layers": " ".join(map(str, config.layers_per_ipu)),
                "replicas": config.replication_factor,
                "fits": "yes" if predicted.fits else "NO",
                "fullest": predicted.fullest,
                "latency_ms": 1e3 * predicted.latency_s,
                "samples_per_s": predicted.samples_per_s,
            }


def _page(result: Result) -> str:
    headings = [column.heading for column in _COLUMNS]
    table = [f"| {' | '.join(headings)} |", f"|{'---|' * len(_COLUMNS)}"]
    table += [f"| {' | '.join(column.text(row) for column in _COLUMNS)} |" for row in result.rows]
    return "\n".join(
        [
            "# Fine-tuning and inference on POD4 and POD16",
            "Generated by `python run_benchmark.py downstream --markdown docs/downstream.md`; don't edit.",
            "Every figure is predicted by the models that [limits.md](limits.md) describes; none was",
            "measured on an IPU.",
            "",
            *table,
            "",
            *result.notes,
            "",
        ]
    )


def _draw(figure: Any, rows: List[Dict[str, Any]]) -> None:
    axes = figure.subplots()
    shown = list(enumerate(reversed(rows)))
    axes.barh([place for place, _ in shown], [row["samples_per_s"] for _, row in shown], color="tab:blue")
    names = [f"{row['what']}, {row['model']}, {row['target']}" for _, row in shown]
    axes.set_yticks([place for place, _ in shown], names, fontsize=4)
    axes.set_xscale("log")
    axes.set_xlabel("sequences per second (predicted)")
