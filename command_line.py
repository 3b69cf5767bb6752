"""What the runners' command lines share: common flags, the first lines of a run, its end and exit status."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Sequence

import config as configuration
import ipu
from config import Config, ConfigError

if TYPE_CHECKING:
    import argparse

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
    return made


def load_config(flags: argparse.Namespace, task: str) -> Config:
    """The configuration that the flags name, of a recipe of `task`. Raises ConfigError."""
    config = configuration.load(
        flags.config, path=flags.configs, overrides=configuration.overrides_from(flags)
    )
    if config.task != task:
        raise ConfigError(f"{flags.config} is a {config.task} recipe; this runner takes {task} recipes")
    return config


def choose_device(config: Config) -> ipu.DeviceChoice:
    """Chooses the device and says so: the first line of every run."""
    device = ipu.select_device(config.device, precision=config.simulator_precision)
    print(device.banner(), flush=True)
    if device.name == "ipu-model" and config.replication_factor != 1:
        raise ConfigError(
            f"replication_factor {config.replication_factor}: Poplar's IPU model has no replicas; "
            "use --replication-factor 1 on device ipu-model"
        )
    return device


def print_configuration(name: str, config: Config) -> None:
    print(f"configuration {name}:")
    for key, value in config.to_dict().items():
        print(f"  {key}: {json.dumps(value)}")
    print("derived:")
    for key, value in configuration.derived(config).items():
        print(f"  {key}: {json.dumps(value)}", flush=True)


def say_how_to_go_on(runner: str, end: Progress, stop: StopRequest, arguments: Sequence[str]) -> None:
    """After a stop: where the run stands, and the command that goes on with it. `runner` is a file."""
    from training import resuming_arguments

    print(f"stopped by {stop.signal_name} after step {end.step}; checkpoint {end.checkpoint}")
    go_on = list(arguments) if end.checkpoint is None else resuming_arguments(arguments)
    print(f"to go on: {shlex.join([sys.executable, str(Path(runner)), *go_on])}")


def run_as_program(main: Callable[[Optional[List[str]]], Any]) -> int:
    """The exit status: 0 done, 2 a user's mistake, 130 interrupted before or after training.

    Anything else is a bug and keeps its traceback.
    """
    try:
        main(None)
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
