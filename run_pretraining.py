#!/usr/bin/env python3
"""Pretrains GroupBERT or BERT: from text to a checkpoint, on IPUs, Poplar's IPU model or the simulator.

    python run_pretraining.py --config demo --output output/demo
    python run_pretraining.py --config demo --output output/demo --resume

`main(argv)` returns a result; only `__main__` turns it, or an error, into an exit status.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import config as configuration
import ipu
from config import Config, ConfigError

if TYPE_CHECKING:
    from training import StopRequest


@dataclass(frozen=True)
class PretrainingResult:
    """What a run leaves: `record` is its last line of metrics, `checkpoint` its last checkpoint."""

    output: Path
    step: int
    record: Dict[str, float]
    checkpoint: Optional[Path]
    interrupted_by: Optional[str]
    unigram_entropy_nats: float


def main(argv: Optional[Sequence[str]] = None) -> PretrainingResult:
    """Runs one pretraining. Raises ValueError subclasses for mistakes that a user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = _parse(arguments)
    config = configuration.load(
        flags.config, path=flags.configs, overrides=configuration.overrides_from(flags)
    )
    if config.task != "pretraining":
        raise ConfigError(f"{flags.config} is a {config.task} recipe; this runner takes pretraining recipes")
    device = ipu.select_device(config.device)
    print(device.banner(), flush=True)
    if device.name == "ipu-model" and config.replication_factor != 1:
        raise ConfigError(
            f"replication_factor {config.replication_factor}: Poplar's IPU model has no replicas; "
            "use --replication-factor 1 on device ipu-model"
        )
    _print_configuration(flags.config, config)

    # torch and its kin take seconds to import: not before the configuration is known to be right.
    from training import hold_folder, stop_on_signals

    output = flags.output or Path("output") / flags.config
    with stop_on_signals() as stop, hold_folder(output):
        result = _run(config, device, output, flags, arguments, stop)
    _report(result, arguments)
    return result


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = configuration.FlagParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="a run of configs.yml, for example demo")
    parser.add_argument(
        "--configs",
        type=Path,
        default=configuration.CONFIGS,
        help="another file of runs (resolved.yml is one)",
    )
    parser.add_argument("--output", type=Path, help="the run's folder (default: output/CONFIG)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="go on from the newest good checkpoint in --output"
    )
    start.add_argument(
        "--checkpoint",
        type=Path,
        help="start from these weights, with a new optimiser (phase 2 after phase 1)",
    )
    configuration.add_flags(parser)
    return parser.parse_args(arguments)


def _print_configuration(name: str, config: Config) -> None:
    print(f"configuration {name}:")
    for key, value in config.to_dict().items():
        print(f"  {key}: {json.dumps(value)}")
    print("derived:")
    for key, value in configuration.derived(config).items():
        print(f"  {key}: {json.dumps(value)}", flush=True)


def _run(
    config: Config,
    device: ipu.DeviceChoice,
    output: Path,
    flags: argparse.Namespace,
    arguments: List[str],
    stop: StopRequest,
) -> PretrainingResult:
    import torch

    import data
    import model as models
    import training
    from ipu.options import DevicePlan, inference_options, training_options

    loop, plan = config.section(training.LoopPlan), config.section(DevicePlan)
    resumed = training.checkpoint_to_resume(output, config.to_dict(), resume=flags.resume)
    weights = None if flags.checkpoint is None else training.resolve_weights_folder(flags.checkpoint)
    if resumed is not None:
        weights = resumed.folder
    if weights is not None:
        print(f"weights from {weights}", flush=True)
        training.check_weights_folder(weights, config.model_config())
    training.write_atomically(output / "resolved.yml", config.to_yaml())

    prepared = data.prepare_pretraining_data(
        config.section(data.PretrainingDataOptions),
        cache_folder=Path(config.cache_folder),
        progress=config.progress_bar and sys.stderr.isatty(),
        identity=None if resumed is None else resumed.state["data"],
    )
    data.require_examples(prepared.train, loop.samples_per_call, "one training step")
    held_out = prepared.validation
    if held_out is None:
        raise data.DataError(
            "nothing is held out to evaluate on: give --validation-fraction above 0 or a --validation-corpus"
        )
    data.require_examples(held_out, 1, "an evaluation")
    # Counting the tokens of a large held-out text takes a while: once is enough.
    entropy = resumed.state["unigram_entropy_nats"] if resumed else data.unigram_entropy(held_out)
    for line in (*prepared.statistics.lines(), f"unigram entropy of the held-out text: {entropy:.4f} nats"):
        print(f"data: {line}", flush=True)

    if weights is not None and prepared.tokenizer is not None:
        training.check_vocabulary(weights, prepared.tokenizer)
    model = training.initial_model(config.model_config(), seed=config.seed, folder=weights)
    if device.name != "simulator" and config.precision == "float16":
        model.half()
    optimizer = training.build_optimizer(model, config.section(training.OptimizerPlan))
    models.annotate(
        model,
        config.layers_per_ipu,
        embedding_serialization_factor=config.embedding_serialization_factor,
        recompute_checkpoint_every_layer=config.recompute_checkpoint_every_layer,
    )
    options = training_options(plan)
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    start, start_sample = training.progress_of(resumed), 0
    if resumed is not None:
        start_sample = resumed.state["samples"]
        # The simulator's sums depend on how many threads share them, down to the last bit.
        torch.set_num_threads(resumed.state["host_threads"])
        optimizer.load_state_dict({**optimizer.state_dict(), **resumed.optimizer_state()})

    evaluate = training.build_evaluator(
        model,
        executor,
        inference_options(plan),
        lambda multiple: data.EvaluationDataset(held_out, multiple),
        micro_batch_size=config.micro_batch_size,
        max_batches=config.eval_batches,
        collate=data.collate,
    )
    modes = ipu.poptorch.DataLoaderMode
    calls_left = -(-(config.training_steps - start.step) // loop.device_iterations)
    batches = ipu.poptorch.DataLoader(
        options,
        prepared.train,
        batch_size=config.micro_batch_size,
        sampler=data.SampleStream(start_sample, loop.samples_per_call, calls_left),
        num_workers=config.dataloader_workers,
        mode=modes.Async if config.async_dataloader else modes.Sync,
        collate_fn=data.collate,
        worker_init_fn=training.ignore_interrupts,
        auto_distributed_partitioning=False,
    )

    def save_model(folder: Path) -> None:
        models.save_pretrained(model, folder)
        if prepared.tokenizer is not None:
            prepared.tokenizer.save(folder)

    def save(now: training.Progress) -> Path:
        training.refuse_bad_weights(model, now.step)
        state: Dict[str, Any] = {
            "progress": {"record": training.plain(now.record), "evaluation_due": now.evaluation_due},
            "samples": now.step * loop.global_batch_size,
            "data": prepared.identity,
            "rng_state": executor.rng_state,
            "host_threads": torch.get_num_threads(),
            "unigram_entropy_nats": entropy,
            "config": config.to_dict(),
            "arguments": arguments,
            "poptorch": ipu.poptorch.__version__,
        }
        return training.save_checkpoint(
            output,
            now.step,
            save_model=save_model,
            optimizer_state=optimizer.state_dict(),
            state=state,
            keep=config.checkpoints_to_keep,
        )

    reporter = training.Reporter(
        output,
        start_step=start.step,
        keep_until=start.step - 1 if start.evaluation_due else start.step,
        total_steps=config.training_steps,
        log_steps=config.log_steps,
        progress_bar=config.progress_bar,
        wandb_project=config.wandb_project if config.wandb else None,
        config=config.to_dict(),
    )
    try:
        with stop.deferred():
            end = training.train(
                loop,
                start,
                rng_state=resumed.state["rng_state"] if resumed else None,
                executor=executor,
                optimizer=optimizer,
                schedule=config.section(training.Schedule),
                batches=batches,
                evaluate=evaluate,
                save=save,
                reporter=reporter,
                stop=stop,
            )
    finally:
        reporter.close()
        executor.destroy()
    return PretrainingResult(output, end.step, end.record, end.checkpoint, stop.signal_name, entropy)


def _report(result: PretrainingResult, arguments: Sequence[str]) -> None:
    """The summary and the picture of a finished run; how to go on with an interrupted one."""
    import training

    if result.interrupted_by is not None:
        print(f"stopped by {result.interrupted_by} after step {result.step}; checkpoint {result.checkpoint}")
        go_on = arguments if result.checkpoint is None else training.resuming_arguments(arguments)
        print(f"to go on: {shlex.join([sys.executable, str(Path(__file__)), *go_on])}")
        return
    summary = {
        **training.plain(result.record),
        "unigram_entropy_nats": result.unigram_entropy_nats,
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
    }
    training.write_atomically(result.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    training.plot_loss(
        result.output / "metrics.jsonl",
        result.output / "loss.png",
        unigram_entropy_nats=result.unigram_entropy_nats,
    )
    print(f"done: step {result.step}, checkpoint {result.checkpoint}, picture {result.output / 'loss.png'}")


def run_as_program() -> int:
    """The exit status: 0 done, 2 a user's mistake, 130 interrupted before or after training.

    Anything else is a bug and keeps its traceback.
    """
    try:
        main()
    except KeyboardInterrupt as signal:
        print(
            f"stopped by {signal or 'Ctrl-C'} at once. What is prepared and saved is kept: the same command "
            "goes on, with --resume where there is a checkpoint",
            file=sys.stderr,
        )
        return 130
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        from data import DataError
        from model import ConversionError, StagesError
        from training import TrainingError

        if not isinstance(error, (DataError, ConversionError, StagesError, TrainingError, ipu.DeviceError)):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_as_program())
