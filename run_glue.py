#!/usr/bin/env python3
"""Fine-tunes GroupBERT or BERT on a task of GLUE or on your own labelled texts, evaluates it, and predicts.

    python run_glue.py --config glue_demo --checkpoint output/demo
    python run_glue.py --config glue_demo --checkpoint output/glue_demo --predict data/glue/demo/test.tsv
    python run_glue.py --config glue_demo --checkpoint output/demo --glue-task csv --train-data mine.csv \
        --validation-data held-out.csv

`main(argv)` returns a result; only `__main__` converts it, or an error, to an exit status.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C during imports ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

import command_line
import config as configuration
import ipu
from config import Config, ConfigError

if TYPE_CHECKING:
    from data import Tokenizer
    from data.glue import ExampleSet, GlueDataOptions, PreparedExamples
    from model import ClassificationModel
    from planning.dry_run import DryRun
    from training import Evaluator, StopRequest


@dataclass(frozen=True)
class GlueResult:
    """The outcome of a run. `scores` has eval_loss and the task's metrics, see data.glue.METRICS; it is empty
    after a stop and for --predict. `predictions` are classes or numbers, in the order of the examples
    evaluated. `checkpoint` is the last one, or the one evaluated."""

    output: Path
    step: int
    scores: Dict[str, float]
    predictions: List[Any]
    checkpoint: Optional[Path]
    interrupted_by: Optional[str]


def main(argv: Optional[Sequence[str]] = None) -> Union[GlueResult, DryRun, command_line.DryRunElsewhere]:
    """Runs one fine-tuning, evaluation or prediction.

    Raises ValueError subclasses for mistakes that a user can correct.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = _parse(arguments)
    config = command_line.load_config(flags, "glue")
    if flags.dry_run:
        return command_line.dry_run(config, flags)
    trains = not flags.evaluate_only and flags.predict is None
    if config.glue_task == "ax" and trains:
        raise ConfigError(
            "glue_task ax has no training set: train with --glue-task mnli, then give that run's folder as "
            "--checkpoint with --glue-task ax and --predict or --evaluate-only"
        )
    device, instances = command_line.start(config)
    if instances.count > 1:
        raise ConfigError("fine-tuning runs in one instance: start it without poprun and torchrun")

    from training import hold_folder, stop_on_signals

    apart = "-evaluation" if flags.evaluate_only else "" if trains else "-predictions"
    output = flags.output or Path("output") / f"{flags.config}{apart}"
    command_line.print_configuration(flags, config, output)
    explained = command_line.verdict_if_memory_is_short(config, flags, output, instances)
    with stop_on_signals() as stop, hold_folder(output), explained:
        if apart:
            return _predict(config, device, output, flags, stop)
        return _fine_tune(config, device, output, flags, arguments, stop)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.parser((__doc__ or "").splitlines()[0], required=True)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="start from these weights: those of a pretrained model, or with --evaluate-only and --predict "
        "of a fine-tuned model",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--resume", action="store_true", help="resume from the newest valid checkpoint in --output"
    )
    what.add_argument("--evaluate-only", action="store_true", help="evaluate --checkpoint, without training")
    what.add_argument(
        "--predict",
        metavar="DATA",
        help="predict on a test set (file, folder with GLUE's files, hf:NAME), in the leaderboard's format",
    )
    configuration.add_flags(parser, "glue")
    flags = parser.parse_args(arguments)
    if flags.resume and flags.checkpoint is not None:
        raise ConfigError("--resume continues from a checkpoint in --output: remove --checkpoint")
    if (flags.evaluate_only or flags.predict) and flags.checkpoint is None:
        asked = "--predict" if flags.predict else "--evaluate-only"
        raise ConfigError(f"{asked} needs a fine-tuned model: add --checkpoint FOLDER")
    return flags


def _fine_tune(
    config: Config,
    device: ipu.DeviceChoice,
    output: Path,
    flags: argparse.Namespace,
    arguments: List[str],
    stop: StopRequest,
) -> GlueResult:
    import training
    from data import DataError
    from data.glue import GlueDataOptions, GlueDataset, read_glue_split
    from model import ClassificationModel

    start = training.find_start(config, output, resume=flags.resume, checkpoint=flags.checkpoint)
    options = config.section(GlueDataOptions)
    examples = read_glue_split(options, "train")
    held_out = read_glue_split(options, "validation", examples.classes)
    tokenizer = _tokenizer(options, start.weights)
    model = training.initial_model(
        config.model_config(),
        head="glue",
        seed=config.seed,
        folder=start.weights,
        labels=examples.classes or ("score",),
        is_resumed=start.resumed is not None,
    )
    assert isinstance(model, ClassificationModel)
    train, validation = (_prepare(one, tokenizer, config, model) for one in (examples, held_out))
    identity = train.features.identity
    if start.resumed is not None and identity != start.resumed.state["data"]:
        raise DataError(
            f"the training examples, their classes, sequence_length or the vocabulary have changed since the "
            f"checkpoint {start.resumed.folder} was written: restore them, or start anew with --checkpoint"
        )
    config = training.with_training_steps(config, len(train.features), "examples")
    examiner = training.ClassExaminer(config, validation, device, options.task)

    def evaluator(executor: Any) -> Evaluator:
        return examiner.while_training(model, executor)

    job = training.Job(
        task=training.GLUE,
        model=model,
        examples=GlueDataset(train.features, seed=config.seed, shuffle=True),
        identity=identity,
        tokenizer=tokenizer,
        evaluator=evaluator,
        state={},
    )
    end = training.fit(config, job, start, device=device, output=output, arguments=arguments, stop=stop)
    if stop:
        command_line.say_how_to_go_on(__file__, end, stop, arguments)
        return GlueResult(output, end.step, {}, [], end.checkpoint, stop.signal_name)
    latest = examiner.latest
    if latest is None or not latest.is_whole:  # eval_batches, or a finished run that was resumed
        scores = examiner.evaluator(model)(stop)
        assert scores is not None and examiner.latest is not None
        latest = examiner.latest
    else:
        scores = {key: value for key, value in end.record.items() if key.startswith("eval_")}
    predictions = _write_predictions(output, validation, latest.outputs, model)
    summary = {**end.summary(config.section(training.LoopPlan)), **scores}
    training.write_summary(output, summary, end.checkpoint)
    named = "mean squared error" if model.is_regression else "classification loss"
    plot = training.plot_loss(output / "metrics.jsonl", output / "loss.png", loss="loss", named=named)
    print(f"done: step {end.step}, checkpoint {end.checkpoint}, {plot}")
    command_line.print_speed(summary)
    print(training.GLUE.evaluation_part(scores))
    if device.name == "simulator":
        command_line.print_verdict(config, flags, output, summary)
    command_line.upload(config, end.checkpoint)
    return GlueResult(output, end.step, scores, predictions, end.checkpoint, None)


def _predict(
    config: Config, device: ipu.DeviceChoice, output: Path, flags: argparse.Namespace, stop: StopRequest
) -> GlueResult:
    """--evaluate-only and --predict."""
    import training
    from data.glue import GlueDataOptions, leaderboard_files, read_glue_source
    from model import ClassificationModel, ConversionError, from_pretrained

    training.refuse_folder_of_a_run(output)
    weights = training.resolve_weights_folder(flags.checkpoint)
    print(f"weights from {weights}", flush=True)
    training.check_weights_folder(weights, config.model_config())
    options = config.section(GlueDataOptions)
    classes = options.task.classes if options.task.columns else ()
    model = from_pretrained(weights, head="glue", fresh_head=False, labels=classes)
    assert isinstance(model, ClassificationModel)
    if model.is_regression != options.task.is_regression:
        theirs, ours = (
            "a regression" if is_one else "a classification"
            for is_one in (model.is_regression, options.task.is_regression)
        )
        raise ConversionError(f"{weights} has {theirs}, but glue_task {config.glue_task} is {ours}")
    source, split = (flags.predict, "test") if flags.predict else (config.validation_data, "validation")
    own = () if options.task.columns or model.is_regression else model.labels
    examples = read_glue_source(options, source, split, own)
    if own:
        examples = replace(examples, classes=own)
    prepared = _prepare(examples, _tokenizer(options, weights), config, model)
    examiner = training.ClassExaminer(config, prepared, device, options.task)
    scores = examiner.evaluator(model)(stop)
    assert scores is not None and examiner.latest is not None
    outputs = examiner.latest.outputs
    predictions = _write_predictions(output, prepared, outputs, model)
    if flags.predict:
        labels = () if model.is_regression else model.labels
        for name, content in leaderboard_files(examples, outputs, options.task, labels).items():
            training.write_atomically(output / name, content)
            print(f"predictions: {output / name}, {content.count(chr(10)) - 1:,} examples")
        return GlueResult(output, 0, {}, predictions, weights, None)
    training.write_summary(output, scores, weights)
    print(training.GLUE.evaluation_part(scores))
    return GlueResult(output, 0, scores, predictions, weights, None)


def _tokenizer(options: GlueDataOptions, weights: Optional[Path]) -> Tokenizer:
    from data import fine_tuning_tokenizer
    from training import check_vocabulary

    tokenizer = fine_tuning_tokenizer(options, weights)
    if weights is not None:
        check_vocabulary(weights, tokenizer)
    return tokenizer


def _prepare(
    examples: ExampleSet, tokenizer: Tokenizer, config: Config, model: ClassificationModel
) -> PreparedExamples:
    from data.glue import prepare_examples

    prepared = prepare_examples(
        examples,
        tokenizer,
        sequence_length=config.sequence_length,
        cache_folder=Path(config.cache_folder),
        classes=() if model.is_regression else model.labels,
    )
    print(f"data: {prepared}", flush=True)
    return prepared


def _write_predictions(
    output: Path, prepared: PreparedExamples, outputs: Any, model: ClassificationModel
) -> List[Any]:
    """Writes predictions.jsonl, and returns the predictions."""
    from data.glue import predicted, prediction_lines
    from training import write_atomically

    classes: Tuple[str, ...] = () if model.is_regression else model.labels
    write_atomically(output / "predictions.jsonl", prediction_lines(prepared.examples, outputs, classes))
    return predicted(outputs, classes)


def run_as_program() -> int:
    """The exit status of the program."""
    return command_line.run_as_program(main)


if __name__ == "__main__":
    sys.exit(run_as_program())
