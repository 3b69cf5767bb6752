"""What the runners' command lines share: common flags, the first lines of a run, its end and exit status."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, Optional, Sequence

import config as configuration
import ipu
from config import Config, ConfigError

if TYPE_CHECKING:
    import argparse

    from planning.dry_run import DryRun
    from training import Progress, StopRequest


def parser(description: str, *, required: bool) -> configuration.FlagParser:
    """The flags of every runner but the configuration's keys, which `configuration.add_flags` adds.

    `required` says whether a run without --config is a mistake.
    """
    made = configuration.FlagParser(description=description)
    made.add_argument("--config", required=required, help="a run of configs.yml, for example demo")
    made.add_argument(
        "--configs",
        type=Path,
        default=configuration.CONFIGS,
        help="another file of runs (resolved.yml is one)",
    )
    made.add_argument("--output", type=Path, help="the run's folder (default: output/CONFIG)")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: say whether the program fits on the target, how fast it is, and why",
    )
    return made


def load_config(flags: argparse.Namespace, task: str) -> Config:
    """The configuration that the flags name, of a recipe of `task`. Raises ConfigError.

    What was found for keys left to a search is said by print_configuration and dry_run, after the device.
    """
    flags.found = []
    overrides = configuration.overrides_from(flags)
    if configuration.free_keys(flags.config, flags.configs, overrides):
        from planning import placement

        config = placement.load(
            flags.config, path=flags.configs, overrides=overrides, report=flags.found.append
        )
    else:
        config = configuration.load(flags.config, path=flags.configs, overrides=overrides)
    if config.task != task:
        raise ConfigError(f"{flags.config} is a {config.task} recipe; this runner takes {task} recipes")
    return config


def choose_device(config: Config) -> ipu.DeviceChoice:
    """Chooses the device and says so: the first line of every run, by the first of its instances."""
    device = ipu.select_device(
        config.device,
        precision=config.simulator_precision,
        offline=config.compile_only,
        target=config.target,
    )
    instances = join_instances(config, device)
    if instances.is_first:
        print(device.banner(), flush=True)
    if instances.is_first and instances.count > 1:
        print(f"instances: {instances.count}, which share {config.replication_factor} replicas", flush=True)
    if device.name == "ipu-model" and config.replication_factor != 1:
        raise ConfigError(
            f"replication_factor {config.replication_factor}: Poplar's IPU model has no replicas; "
            "use --replication-factor 1 on device ipu-model"
        )
    return device


def dry_run(config: Config, flags: argparse.Namespace) -> DryRun:
    """--dry-run of any runner: the verdict on the configuration, in the run's folder."""
    from planning.dry_run import dry_run as make_verdict

    print(ipu.select_device("simulator").banner(), flush=True)
    if config.device not in ("auto", "simulator"):
        print(f"the verdict is computed here, whatever the device: {config.device} isn't used", flush=True)
    for line in flags.found:
        print(line, flush=True)
    return make_verdict(config, flags.config, flags.output or Path("output") / flags.config)


def print_speed(summary: Mapping[str, float]) -> None:
    """The mean speed of a run, where it had more than one device call."""
    if "data_wait_fraction" in summary:
        waiting = f"{summary['data_wait_fraction']:.1%} of the time spent waiting for data"
        print(f"speed: {summary['samples_per_s']:.1f} samples/s on average, {waiting}")


def print_verdict(
    config: Config, flags: argparse.Namespace, output: Path, summary: Mapping[str, float]
) -> None:
    """At the end of a run on the simulator: the verdict, beside what an update took here.

    The run is over and saved, so a mistake of ours here is told and doesn't make it a failed one.
    """
    from planning.dry_run import verdict_beside

    if "samples_per_s" not in summary:  # nothing was left to train
        return
    measured_s = config.global_batch_size / summary["samples_per_s"]
    try:
        verdict_beside(config, flags.config, output, measured_host_s=measured_s)
    except Exception:
        traceback.print_exc()
        print("the run is saved, but there is no verdict on it: see the error above", file=sys.stderr)


def join_instances(config: Config, device: ipu.DeviceChoice) -> ipu.Instances:
    """All instances of this run, alone if there is one; raises DeviceError where they don't fit it."""
    return ipu.join_instances(
        device, replication_factor=config.replication_factor, ipus_per_replica=config.ipus_per_replica
    )


def print_configuration(flags: argparse.Namespace, config: Config) -> None:
    """Every key and every quantity that follows, and first what a search found."""
    for line in flags.found:
        print(line)
    print(f"configuration {flags.config}:")
    for key, value in config.to_dict().items():
        print(f"  {key}: {json.dumps(value)}")
    print("derived:")
    for key, value in configuration.derived(config).items():
        print(f"  {key}: {json.dumps(value)}", flush=True)


def say_how_to_go_on(
    runner: str,
    end: Progress,
    stop: StopRequest,
    arguments: Sequence[str],
    instances: ipu.Instances = ipu.ALONE,
) -> None:
    """After a stop: where the run stands, and the command that goes on with it. `runner` is a file."""
    from training import resuming_arguments

    print(f"stopped by {stop.signal_name} after step {end.step}; checkpoint {end.checkpoint}")
    go_on = list(arguments) if end.checkpoint is None else resuming_arguments(arguments)
    program = [str(Path(runner)), *go_on]
    if not instances.launched:
        print(f"to go on: {shlex.join([sys.executable, *program])}")
        return
    # What else the launcher was told (hosts, for example) isn't known here.
    name = instances.launcher.split()[0]
    python = [] if name == "torchrun" else [sys.executable]
    print(
        f"to go on, with {name}'s other flags as before: {instances.launcher} {shlex.join(python + program)}"
    )


def run_as_program(main: Callable[[Optional[List[str]]], Any]) -> int:
    """The exit status: 0 done, 2 a user's mistake, 3 does not fit, 130 interrupted before or after training.

    Anything else is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the runners begin without one
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a letter of an answer or a path
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = main(None)
    except KeyboardInterrupt as interrupt:
        print(
            f"stopped by {str(interrupt) or 'Ctrl-C'} at once. What is prepared and saved is kept: the same "
            "command goes on, with --resume where there is a checkpoint",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # Nothing reads our lines any more (`| head`); what is still to be flushed would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error: broken pipe: the program reading our output has exited", file=sys.stderr)
        return 2
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
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        asked = re.search(r"\d+ bytes", str(error))
        more = f" for {asked[0]} more" if asked else ""
        print(
            f"error: this host has too little memory{more}: take a smaller model or micro_batch_size, or a "
            "larger host (--dry-run needs no memory for a model)",
            file=sys.stderr,
        )
        return 2
    return 0 if getattr(result, "fits", True) else 3
