#!/usr/bin/env python3
"""Pretrains GroupBERT or BERT on text, on IPUs, Poplar's IPU model or the simulator.

    python run_pretraining.py --config demo --output output/demo
    python run_pretraining.py --config demo --output output/demo --resume

`main(argv)` returns a result; only `__main__` converts it, or an error, to an exit status.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C during imports ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import json
import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Union

import command_line
import config as configuration
import ipu
from config import Config

if TYPE_CHECKING:
    from planning.dry_run import DryRun
    from training import Evaluator, StopRequest


@dataclass(frozen=True)
class PretrainingResult:
    """The outcome of a run: `record` is its last line of metrics, `checkpoint` its last checkpoint."""

    output: Path
    step: int
    record: Dict[str, float]
    checkpoint: Optional[Path]
    interrupted_by: Optional[str]
    unigram_entropy_nats: float


def main(
    argv: Optional[Sequence[str]] = None,
) -> Union[PretrainingResult, DryRun, command_line.DryRunElsewhere]:
    """Runs one pretraining, or with --dry-run only its prediction.

    Raises ValueError subclasses for mistakes that a user can correct.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = _parse(arguments)
    config = command_line.load_config(flags, "pretraining")
    if flags.dry_run:
        return command_line.dry_run(config, flags)
    device, instances = command_line.start(config)
    output = flags.output or Path("output") / flags.config
    with instances.only_first_prints():
        command_line.print_configuration(flags, config, output)

        # Importing torch takes seconds: check the configuration first.
        from training import hold_folder, stop_on_signals

        held = hold_folder(output) if instances.is_first else nullcontext()
        explained = command_line.verdict_if_memory_is_short(config, flags, output, instances)
        with stop_on_signals() as stop, held, explained:
            return _run(config, device, instances, output, flags, arguments, stop)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.parser((__doc__ or "").splitlines()[0], required=True)
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="resume from the newest valid checkpoint in --output"
    )
    start.add_argument(
        "--checkpoint",
        type=Path,
        help="start from these weights with a new optimiser (phase 2 after phase 1)",
    )
    configuration.add_flags(parser, "pretraining")
    return parser.parse_args(arguments)


def _run(
    config: Config,
    device: ipu.DeviceChoice,
    instances: ipu.Instances,
    output: Path,
    flags: argparse.Namespace,
    arguments: List[str],
    stop: StopRequest,
) -> PretrainingResult:
    import data
    import training
    from ipu.options import DevicePlan, inference_options

    if config.compile_only:
        return _compile_only(config, device, instances, output, flags)
    start = training.find_start(
        config, output, resume=flags.resume, checkpoint=flags.checkpoint, instances=instances
    )
    resumed, options = start.resumed, config.section(data.PretrainingDataOptions)
    model = training.initial_model(
        config.model_config(),
        head="pretraining",
        seed=config.seed,
        folder=start.weights,
        is_resumed=start.resumed is not None,
    )
    if start.weights is not None and resumed is None and options.tokenizer != data.TRAINED_TOKENIZER:
        training.check_vocabulary(
            start.weights, data.load_tokenizer(options.tokenizer, lowercase=options.lowercase)
        )
    prepared = data.prepare_pretraining_data(
        options,
        cache_folder=Path(config.cache_folder),
        progress=config.progress_bar and sys.stderr.isatty(),
        identity=None if resumed is None else resumed.state["data"],
    )
    data.require_examples(prepared.train, config.samples_per_call, "one training step")
    held_out = prepared.validation
    if held_out is None:
        raise data.DataError(
            "there is no held-out text to evaluate on: set --validation-fraction above 0 or "
            "--validation-corpus"
        )
    data.require_examples(held_out, 1, "an evaluation")
    # Counting the tokens of a large held-out text is slow: do it only once.
    entropy = resumed.state.get("unigram_entropy_nats") if resumed else None
    if entropy is None:
        entropy = data.unigram_entropy(held_out)
    for line in (*prepared.statistics.lines(), f"unigram entropy of the held-out text: {entropy:.4f} nats"):
        print(f"data: {line}", flush=True)

    if config.packed_data:  # from here on, verdicts and speeds count what the data have
        config = replace(config, packing_factor=prepared.sequences_per_row)
    if start.weights is not None and prepared.tokenizer is not None:
        training.check_vocabulary(start.weights, prepared.tokenizer)

    def evaluator(executor: Any) -> Evaluator:
        return training.build_evaluator(
            model,
            executor,
            inference_options(config.section(DevicePlan), instances),
            lambda multiple: data.EvaluationDataset(held_out, multiple),
            micro_batch_size=config.micro_batch_size,
            max_batches=config.eval_batches,
            collate=data.collate,
            metrics=training.EvaluationMetrics,
            instances=instances,
            progress=config.progress_bar and instances.is_first and sys.stderr.isatty(),
        )

    job = training.Job(
        task=training.PACKED_PRETRAINING if config.packed_data else training.PRETRAINING,
        model=model,
        examples=prepared.train,
        identity=prepared.identity,
        tokenizer=prepared.tokenizer,
        evaluator=evaluator,
        state={"unigram_entropy_nats": entropy},
    )
    end = training.fit(
        config,
        job,
        start,
        device=device,
        output=output,
        arguments=arguments,
        stop=stop,
        instances=instances,
    )
    if stop:
        command_line.say_how_to_go_on(__file__, end, stop, arguments, instances)
    result = PretrainingResult(output, end.step, end.record, end.checkpoint, stop.signal_name, entropy)
    if result.interrupted_by is None and instances.is_first:
        summary = end.summary(config.section(training.LoopPlan))
        _report(result, summary)
        if device.name == "simulator":
            command_line.print_verdict(config, flags, output, summary, instances)
        command_line.upload(config, result.checkpoint)
    return result


def _compile_only(
    config: Config,
    device: ipu.DeviceChoice,
    instances: ipu.Instances,
    output: Path,
    flags: argparse.Namespace,
) -> PretrainingResult:
    import training

    model = training.initial_model(config.model_config(), head="pretraining", seed=config.seed, folder=None)
    files = training.compile_pretraining(config, flags.config, model, device, instances)
    print(f"compiled: {', '.join(map(str, files))}")
    return PretrainingResult(output, 0, {}, None, None, math.nan)


def _report(result: PretrainingResult, summary: Dict[str, float]) -> None:
    """Writes the summary and the loss curve of a finished run."""
    import training

    content = {
        **training.plain(summary),
        "unigram_entropy_nats": result.unigram_entropy_nats,
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
    }
    training.write_atomically(result.output / "summary.json", json.dumps(content, indent=2) + "\n")
    plot = training.plot_loss(
        result.output / "metrics.jsonl",
        result.output / "loss.png",
        also={"nsp_loss": "next-sentence loss"},
        unigram_entropy_nats=result.unigram_entropy_nats,
    )
    print(f"done: step {result.step}, checkpoint {result.checkpoint}, {plot}")
    command_line.print_speed(summary)


def run_as_program() -> int:
    """The exit status of the program."""
    return command_line.run_as_program(main)


if __name__ == "__main__":
    sys.exit(run_as_program())
