#!/usr/bin/env python3
"""Fine-tunes GroupBERT or BERT on SQuAD, evaluates it, answers questions, and scores answers.

    python run_squad.py --config squad_demo --checkpoint output/demo
    python run_squad.py --config squad_demo --checkpoint output/squad_demo --predict questions.json
    python run_squad.py --score predictions.json --data dev-v1.1.json.gz

`main(argv)` returns a result; only `__main__` converts it, or an error, to an exit status.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C during imports ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import json
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
    from data.squad import Answered, PreparedQuestions, QuestionSet, SquadDataOptions
    from planning.dry_run import DryRun
    from training import Evaluator, StopRequest


@dataclass(frozen=True)
class SquadResult:
    """The outcome of a run. `scores` has eval_exact, eval_f1 (percent) and others, see data.squad.evaluate;
    it is empty after a stop and for --predict. `checkpoint` is the last one, or the one evaluated."""

    output: Path
    step: int
    scores: Dict[str, float]
    answered: List[Answered]
    checkpoint: Optional[Path]
    interrupted_by: Optional[str]


def main(
    argv: Optional[Sequence[str]] = None,
) -> Union[SquadResult, DryRun, command_line.DryRunElsewhere, Dict[str, Any]]:
    """Runs one fine-tuning, evaluation or prediction; --score prints and returns one JSON object instead.

    Raises ValueError subclasses for mistakes that a user can correct.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = _parse(arguments)
    if flags.score is not None:
        scores = score(flags.score, flags.data)
        print(json.dumps(scores))
        return scores
    config = command_line.load_config(flags, "squad")
    if flags.dry_run:
        return command_line.dry_run(config, flags)
    device, instances = command_line.start(config)
    if instances.count > 1:
        raise ConfigError("fine-tuning runs in one instance: start it without poprun and torchrun")

    from training import hold_folder, stop_on_signals

    apart = "-evaluation" if flags.evaluate_only else "-answers" if flags.predict else ""
    output = flags.output or Path("output") / f"{flags.config}{apart}"
    command_line.print_configuration(flags, config, output)
    explained = command_line.verdict_if_memory_is_short(config, flags, output, instances)
    with stop_on_signals() as stop, hold_folder(output), explained:
        if apart:
            return _answer(config, device, output, flags, stop)
        return _fine_tune(config, device, output, flags, arguments, stop)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.parser((__doc__ or "").splitlines()[0], required=False)
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
        "--predict", type=Path, metavar="FILE", help="answer the questions of a SQuAD JSON file"
    )
    what.add_argument(
        "--score", type=Path, metavar="PREDICTIONS", help='score a JSON file of {"question id": "answer"}'
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="with --score: the SQuAD JSON file")
    configuration.add_flags(parser, "squad")
    flags = parser.parse_args(arguments)
    _check_flags(flags)
    return flags


def _check_flags(flags: argparse.Namespace) -> None:
    """Raises ConfigError for flags that exclude or require each other."""
    if flags.score is not None and flags.data is None:
        raise ConfigError("--score also needs the questions: add --data FILE, a SQuAD JSON file")
    if flags.score is None and flags.data is not None:
        raise ConfigError(
            "--data belongs to --score; for training and evaluation use --train-data and --validation-data"
        )
    if flags.score is None and flags.config is None:
        raise ConfigError("use --config NAME with a squad recipe of configs.yml, or --score FILE --data FILE")
    if flags.resume and flags.checkpoint is not None:
        raise ConfigError("--resume continues from a checkpoint in --output: remove --checkpoint")
    if (flags.evaluate_only or flags.predict) and flags.checkpoint is None:
        asked = "--predict" if flags.predict else "--evaluate-only"
        raise ConfigError(f"{asked} needs a fine-tuned model: add --checkpoint FOLDER")


def _fine_tune(
    config: Config,
    device: ipu.DeviceChoice,
    output: Path,
    flags: argparse.Namespace,
    arguments: List[str],
    stop: StopRequest,
) -> SquadResult:
    import training
    from data import DataError
    from data.squad import SquadDataOptions, SquadDataset, read_split
    from model import SquadModel

    start = training.find_start(config, output, resume=flags.resume, checkpoint=flags.checkpoint)
    options = config.section(SquadDataOptions)
    model = training.initial_model(
        config.model_config(),
        head="squad",
        seed=config.seed,
        folder=start.weights,
        is_resumed=start.resumed is not None,
    )
    assert isinstance(model, SquadModel)
    tokenizer = _tokenizer(options, start.weights)
    questions = [read_split(options, split) for split in ("train", "validation")]
    train, held_out = (_prepare(data, tokenizer, config) for data in questions)
    identity = train.features.identity
    if start.resumed is not None and identity != start.resumed.state["data"]:
        raise DataError(
            f"the training questions, length settings or vocabulary have changed since the checkpoint "
            f"{start.resumed.folder} was written: restore them, or start a new run with --checkpoint"
        )
    config = training.with_training_steps(config, len(train.features), "windows")
    examiner = training.Examiner(config, held_out, device)

    def evaluator(executor: Any) -> Evaluator:
        return examiner.while_training(model, executor)

    job = training.Job(
        task=training.SQUAD,
        model=model,
        examples=SquadDataset(train.features, seed=config.seed, shuffle=True),
        identity=identity,
        tokenizer=tokenizer,
        evaluator=evaluator,
        state={},
    )
    end = training.fit(config, job, start, device=device, output=output, arguments=arguments, stop=stop)
    if stop:
        command_line.say_how_to_go_on(__file__, end, stop, arguments)
        return SquadResult(output, end.step, {}, [], end.checkpoint, stop.signal_name)
    latest = examiner.latest
    if latest is None or not latest.is_whole:  # eval_batches, or a finished run that was resumed
        scores = examiner.evaluator(model)(stop)
        assert scores is not None and examiner.latest is not None
        latest = examiner.latest
    else:
        scores = {key: value for key, value in end.record.items() if key.startswith("eval_")}
    _write_answers(output, latest.answered)
    summary = {**end.summary(config.section(training.LoopPlan)), **scores}
    training.write_summary(output, summary, end.checkpoint)
    plot = training.plot_loss(
        output / "metrics.jsonl", output / "loss.png", loss="loss", named="question-answering loss"
    )
    print(f"done: step {end.step}, checkpoint {end.checkpoint}, {plot}")
    command_line.print_speed(summary)
    print(training.SQUAD.evaluation_part(scores))
    if device.name == "simulator":
        command_line.print_verdict(config, flags, output, summary)
    command_line.upload(config, end.checkpoint)
    return SquadResult(output, end.step, scores, latest.answered, end.checkpoint, None)


def _answer(
    config: Config, device: ipu.DeviceChoice, output: Path, flags: argparse.Namespace, stop: StopRequest
) -> SquadResult:
    """--evaluate-only and --predict."""
    import training
    from data.squad import SquadDataOptions, read_questions, read_split
    from model import SquadModel, from_pretrained

    training.refuse_folder_of_a_run(output)
    weights = training.resolve_weights_folder(flags.checkpoint)
    print(f"weights from {weights}", flush=True)
    training.check_weights_folder(weights, config.model_config())
    model = from_pretrained(weights, head="squad", fresh_head=False)
    assert isinstance(model, SquadModel)
    options = config.section(SquadDataOptions)
    if flags.predict:
        questions = read_questions(flags.predict, answers="none")
        questions = replace(questions, has_impossible=config.squad_version == "2.0")
    else:
        questions = read_split(options, "validation")
    prepared = _prepare(questions, _tokenizer(options, weights), config)
    examiner = training.Examiner(config, prepared, device)
    scores = examiner.evaluator(model)(stop)
    assert scores is not None and examiner.latest is not None
    answered = examiner.latest.answered
    _write_answers(output, answered)
    if flags.predict:
        print(table(answered))
        return SquadResult(output, 0, {}, answered, weights, None)
    training.write_summary(output, scores, weights)
    print(training.SQUAD.evaluation_part(scores))
    return SquadResult(output, 0, scores, answered, weights, None)


def _tokenizer(options: SquadDataOptions, weights: Optional[Path]) -> Tokenizer:
    from data import fine_tuning_tokenizer
    from training import check_vocabulary

    tokenizer = fine_tuning_tokenizer(options, weights)
    if weights is not None:
        check_vocabulary(weights, tokenizer)
    return tokenizer


def _prepare(questions: QuestionSet, tokenizer: Tokenizer, config: Config) -> PreparedQuestions:
    from data.squad import SquadDataOptions, prepare_questions

    prepared = prepare_questions(
        questions,
        tokenizer,
        config.section(SquadDataOptions),
        cache_folder=Path(config.cache_folder),
        progress=config.progress_bar and sys.stderr.isatty(),
    )
    print(f"data: {prepared}", flush=True)
    return prepared


def _write_answers(output: Path, answered: List[Answered]) -> None:
    from data.squad import prediction_files
    from training import write_atomically

    for name, content in prediction_files(answered).items():
        write_atomically(output / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


_TABLE_COLUMN = 60  # most characters of a question or an answer in the table


def table(answered: Sequence[Answered]) -> str:
    """A table of questions, answers and probabilities among the n best, truncated for a terminal."""
    rows: List[Tuple[str, str, str]] = [("question", "answer", "probability")]
    for one in answered:
        given = next(candidate for candidate in one.candidates if candidate.text == one.text)
        shown = _shown(one.text) or "(no answer)"
        rows.append((_shown(one.question.question), shown, f"{given.probability:.1%}"))
    return configuration.text_table(rows, right=(2,), rule=True)


def _shown(text: str) -> str:
    """The text on one line, without control characters, truncated."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return line if len(line) <= _TABLE_COLUMN else line[: _TABLE_COLUMN - 3] + "..."


def score(predictions_file: Path, data_file: Path) -> Dict[str, Any]:
    """The metrics of {"question id": "answer"} on a SQuAD file; both plain or gzipped.

    Warns on stderr of questions without a prediction, and of predictions without a question. Raises
    DataError for other content.
    """
    from data import DataError
    from data.squad import evaluate, read_json, read_questions

    data = read_questions(data_file, answers="texts")
    predictions = read_json(predictions_file)
    if not isinstance(predictions, dict):
        raise DataError(
            f"{str(predictions_file)!r} holds a JSON {type(predictions).__name__}, not an object "
            '{"question id": "answer"}. Use a predictions.json.'
        )
    missing = [question.id for question in data.questions if question.id not in predictions]
    if missing:
        print(
            f"{len(missing)} of {len(data.questions)} questions have no prediction and score 0, "
            f"{missing[0]!r} first: check that the predictions belong to this file",
            file=sys.stderr,
        )
    unasked = sorted(set(predictions) - {question.id for question in data.questions})
    if unasked:
        print(
            f"{len(unasked)} of {len(predictions)} predictions belong to no question of {data.name}, "
            f"{unasked[0]!r} first, and are ignored: check that the predictions belong to this file",
            file=sys.stderr,
        )
    return evaluate(data, predictions)


def run_as_program() -> int:
    """The exit status of the program."""
    return command_line.run_as_program(main)


if __name__ == "__main__":
    sys.exit(run_as_program())
