"""Shared by all runners: common flags, the first and last lines of a run, and the exit status."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, replace
from importlib import metadata as importlib_metadata
from pathlib import Path
from types import FrameType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterator,
    List,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import config as configuration
import ipu
from config import Config, ConfigError
from ipu.placement import nearest_divisors

if TYPE_CHECKING:
    from planning.dry_run import DryRun
    from training import Progress, StopRequest


def parser(description: str, *, required: bool) -> configuration.FlagParser:
    """The flags that all runners share, without the configuration's keys (`configuration.add_flags`).

    `required`: --config must be given.
    """
    made = configuration.FlagParser(description=description)
    made.add_argument(
        "--config", required=required, help="a recipe of configs.yml, for example demo; --list names all"
    )
    made.add_argument(
        "--configs",
        type=Path,
        default=configuration.CONFIGS,
        help="another recipe file, such as a run's resolved.yml",
    )
    made.add_argument("--list", action=_ListRecipes, nargs=0, help="list the recipes of this runner")
    made.add_argument(
        "--completion", action=_Completion, nargs=0, help="print the completion of flags, for bash and zsh"
    )
    made.add_argument("--version", action=_Version, nargs=0, help="print the versions in use")
    made.add_argument(
        "--print-config", action="store_true", help="print every key and every derived quantity at the start"
    )
    made.add_argument("--output", type=Path, help="output folder (default: output/CONFIG)")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="don't train: report whether the program fits on the target, how fast it runs, and why",
    )
    made.add_argument(
        "--simulator-python",
        metavar="FILE",
        help="the Python that makes verdicts (--dry-run) where this one, PopTorch's, is too old for them: it "
        "needs requirements.txt",
    )
    made.add_argument(
        "--inference",
        action="store_true",
        help="with --dry-run: report on the model's forward pass alone: latency of a micro batch (of 1 with "
        "--micro-batch-size 1), throughput, memory",
    )
    made.add_argument(
        "--instances",
        type=int,
        default=1,
        help="with --dry-run: the processes that PopRun will start, of which each drives a share of the "
        "replicas and shards over these (default: 1)",
    )
    return made


class _ListRecipes(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        runner = Path(parser.prog).stem
        task = runner[len("run_") :] if runner.startswith("run_") else None
        try:
            lines = configuration.recipe_lines(task, namespace.configs)
        except ConfigError as error:
            parser.error(str(error))
        print("\n".join(lines))
        parser.exit(0)


class _Completion(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        from config.completion import script

        print(script(parser), end="")
        parser.exit(0)


class _Version(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        own = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
        assert own is not None
        torch = importlib_metadata.version("torch")
        python = platform.python_version()
        print(f"groupbert-ipu {own[1]}, Python {python}, torch {torch}")
        parser.exit(0)


def runner_of(task: str) -> Optional[str]:
    """The runner that takes recipes of a task; None if there is none."""
    name = f"run_{task}.py"
    return name if (ROOT / name).is_file() else None


def load_config(flags: argparse.Namespace, task: str) -> Config:
    """The configuration of a `task` recipe, from --config and the flags. Raises ConfigError.

    The results of a search for "auto" values are kept in `flags.found`, to be printed after the device.
    """
    flags.found = []
    overrides = configuration.overrides_from(flags)
    if configuration.free_keys(flags.config, flags.configs, overrides):
        if flags.instances != 1:
            raise ConfigError(
                f"--instances {flags.instances}: values that are auto are searched for one instance; search "
                "without it, and give the values that it finds"
            )
        lacking = what_a_verdict_lacks()
        if lacking is not None:
            raise ConfigError(
                f"the search for values that are auto needs {lacking}: run it with --dry-run in such a "
                "Python, and give this one the values that it finds"
            )
        from planning import placement

        config = placement.load(
            flags.config, path=flags.configs, overrides=overrides, report=flags.found.append
        )
    else:
        config = configuration.load(flags.config, path=flags.configs, overrides=overrides)
    if config.task != task:
        runner = runner_of(config.task)
        advice = f"use python {runner} --config {flags.config}" if runner else "it has no runner yet"
        raise ConfigError(
            f"{flags.config} is a {config.task} recipe, but this runner needs a {task} recipe: {advice}"
        )
    if flags.inference and not flags.dry_run:
        raise ConfigError("--inference is read with --dry-run only: run_inference.py runs a trained model")
    if flags.instances != 1:
        _check_instances(flags, config)
    if config.simulator_precision == "fastest":  # a run's record says which
        config = replace(config, simulator_precision=ipu.fastest_precision())
    return _with_sizes_of_checkpoint(config, flags, overrides)


# What BERTs of the same shape differ in: a checkpoint's value counts unless a flag gives another.
_SIZES = ("vocab_size", "intermediate_size", "max_position_embeddings", "layer_norm_eps")


def _with_sizes_of_checkpoint(
    config: Config, flags: argparse.Namespace, overrides: Mapping[str, object]
) -> Config:
    """The configuration with the checkpoint's vocabulary, lengths and epsilon, each printed if it differs.

    A folder without a readable model is left to the run, which says what is wrong with it.
    """
    folder = getattr(flags, "checkpoint", None)
    if getattr(flags, "resume", False):
        folder = flags.output or Path("output") / flags.config
    if folder is None:
        return config
    import model as models
    from training.checkpoints import newest_checkpoint

    if not (folder / "config.json").is_file():  # an output folder
        newest, _ = newest_checkpoint(folder, files=("config.json",))
        folder = folder if newest is None else newest.folder
    try:
        theirs = models.read_model_config(folder)
    except models.ConversionError:
        return config
    ours = config.model_config()
    changes = {
        key: getattr(theirs, key)
        for key in _SIZES
        if key not in overrides and getattr(theirs, key) != getattr(ours, key)
    }
    for key, value in changes.items():
        flags.found.append(f"{key} {value}, the checkpoint's (recipe: {getattr(ours, key)})")
    return replace(config, **changes) if changes else config


def _check_instances(flags: argparse.Namespace, config: Config) -> None:
    if not flags.dry_run:
        raise ConfigError(
            f"--instances {flags.instances} is read with --dry-run only: PopRun and torchrun say how many "
            "instances a run has (docs/ipu_pod.md)"
        )
    if config.task != "pretraining":
        raise ConfigError(f"--instances {flags.instances}: fine-tuning runs in one instance; omit it")
    replicas = config.replication_factor
    if flags.instances < 1 or replicas % flags.instances:
        legal = " or ".join(map(str, nearest_divisors(replicas, flags.instances)))
        raise ConfigError(
            f"--instances {flags.instances} can't share replication_factor {replicas} equally: use {legal}"
        )


def choose_device(config: Config) -> ipu.DeviceChoice:
    """Chooses the device; the first instance prints it, as the first line of every run."""
    return start(config)[0]


def start(config: Config) -> Tuple[ipu.DeviceChoice, ipu.Instances]:
    """As choose_device; also joins the instances that were started together, which a process does once."""
    device = ipu.select_device(
        config.device,
        precision=config.simulator_precision,
        offline=config.compile_only,
        target=config.target,
    )
    instances = _join_instances(config, device)
    if instances.is_first:
        print(device.banner(), flush=True)
    if instances.is_first and instances.count > 1:
        print(f"instances: {instances.count}, sharing {config.replication_factor} replicas", flush=True)
    if device.name == "ipu-model" and config.replication_factor != 1:
        raise ConfigError(
            f"replication_factor {config.replication_factor}: Poplar's IPU model has no replicas; "
            "use --replication-factor 1 on device ipu-model"
        )
    return device, instances


@dataclass(frozen=True)
class DryRunElsewhere:
    """The result of a dry run in another Python: the folder with its files, and whether the program fits."""

    output: Path
    fits: bool


def dry_run(config: Config, flags: argparse.Namespace) -> Union[DryRun, DryRunElsewhere]:
    """--dry-run of all runners: prints the verdict and writes it to the output folder.

    Raises ConfigError if neither this Python nor --simulator-python can make it.
    """
    output = flags.output or Path("output") / flags.config
    if flags.simulator_python is not None:
        words = ["--dry-run", "--instances", str(flags.instances)]
        words += ["--inference"] if flags.inference else []
        done = run_on_simulator(flags.simulator_python, config, flags.config, output, *words)
        print(done.stdout, end="", flush=True)
        return DryRunElsewhere(output, done.returncode == 0)
    lacking = what_a_verdict_lacks()
    if lacking is not None:
        raise ConfigError(f"a verdict needs {lacking}. {_OTHER_PYTHON}")
    from planning.dry_run import dry_run as make_verdict

    print(ipu.simulator_choice().banner(), flush=True)
    if config.device not in ("auto", "simulator"):
        print(f"the verdict needs no device: --device {config.device} is ignored", flush=True)
    for line in flags.found:
        print(line, flush=True)
    if not flags.inference:
        _warn_of_changed_batch(flags, config)
    made = make_verdict(config, flags.config, output, instances=flags.instances, inference=flags.inference)
    remedy = next((remedy.change for remedy in made.verdict.remedies if remedy.fits), None)
    if remedy is not None:
        print(f"the first of the remedies that fit: {_command_with(remedy, flags, config)}", flush=True)
    return made


def _command_with(change: str, flags: argparse.Namespace, config: Config) -> str:
    """The command of this dry run with the flags of a remedy, which override earlier ones."""
    words = ["python", f"run_{config.task}.py", "--config", flags.config]
    if flags.configs != configuration.CONFIGS:
        words += ["--configs", str(flags.configs)]
    for key, value in configuration.overrides_from(flags).items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, (list, tuple)) else (value,)
            words += [f"--{flag}", *("none" if entry is None else str(entry) for entry in values)]
    if flags.instances != 1:
        words += ["--instances", str(flags.instances)]
    return f"{shlex.join(words)} {change} --dry-run"


ROOT = Path(__file__).resolve().parent
_VERDICTS_PYTHON, _VERDICTS_TORCH = (3, 10), (2, 3)
_OTHER_PYTHON = (
    "Name a Python that has both with --simulator-python FILE: docs/ipu_pod.md says how to install it beside "
    "PopTorch's"
)


def what_a_verdict_lacks() -> Optional[str]:
    """What a verdict needs that this Python doesn't have, in words; None if it has all."""
    torch = importlib_metadata.version("torch")
    major, minor = torch.split(".")[:2]
    if sys.version_info >= _VERDICTS_PYTHON and (int(major), int(minor)) >= _VERDICTS_TORCH:
        return None
    return (
        f"Python 3.10 and torch 2.3 or newer; this is Python {platform.python_version()} with torch {torch}"
    )


def run_on_simulator(
    python: str, config: Config, name: str, output: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """Runs `config` on the simulator in another Python, with `words` as further arguments.

    A process uses one PopTorch. Raises ConfigError if that Python can't be started or the run fails; status 3
    (a verdict on a program that doesn't fit) isn't a failure.
    """
    output.mkdir(parents=True, exist_ok=True)
    recipe = output / "recipe.yml"
    recipe.write_text(replace(config, device="simulator").to_yaml(name), encoding="utf-8")
    command = [python, str(ROOT / f"run_{config.task}.py"), "--configs", str(recipe.resolve())]
    command += ["--config", name, "--output", str(output.resolve()), *words]
    # Without the SDK's packages, which are for another Python, and outside of PopRun.
    apart = ("PYTHONPATH", "PYTHONHOME", "POPDIST_", "OMPI_")
    try:
        done = subprocess.run(
            command,
            cwd=str(ROOT),
            env={key: value for key, value in os.environ.items() if not key.startswith(apart)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        raise ConfigError(f"--simulator-python {python} can't be started: {error.strerror}") from error
    if done.returncode not in (0, 3):
        last = "\n".join(done.stdout.splitlines()[-5:])
        raise ConfigError(
            f"the simulator's run failed ({' '.join(map(shlex.quote, command))}):\n{last}\nIt needs Python "
            "3.11 with requirements.txt installed: name such a Python with --simulator-python"
        )
    return done


@contextlib.contextmanager
def verdict_if_memory_is_short(
    config: Config, flags: argparse.Namespace, output: Path, instances: ipu.Instances
) -> Iterator[None]:
    """Prints the verdict, with its remedies, if a compilation inside the block runs out of memory on IPUs."""
    from training import CompilationError

    try:
        yield
    except CompilationError as error:
        if not error.lacks_memory or not instances.is_first:
            raise
        python = flags.simulator_python
        if python is None and what_a_verdict_lacks() is None:
            python = sys.executable
        if python is None:
            advice = "the same command with --dry-run --simulator-python FILE says what saves how much memory"
            raise ConfigError(f"{error}\n{advice}. {_OTHER_PYTHON}") from error
        words = ["--dry-run", "--instances", str(instances.count)]
        try:
            done = run_on_simulator(python, config, flags.config, output / "verdict", *words)
        except ConfigError as no_verdict:
            raise ConfigError(f"{error}\nThere is no verdict on it: {no_verdict}") from error
        print(done.stdout, file=sys.stderr)
        advice = (
            "take one of the changes above"
            if done.returncode
            else "the verdict above is wrong here (please send it with this message). Lower "
            "--matmul-proportion or --micro-batch-size, or use --optimizer-state off_chip"
        )
        raise ConfigError(f"{error}\nThe program doesn't fit into its IPUs' memory: {advice}") from error


def print_speed(summary: Mapping[str, float]) -> None:
    """Prints the mean speed of a run with more than one device call."""
    if "data_wait_fraction" in summary:
        waiting = f"{summary['data_wait_fraction']:.1%} of the time spent waiting for data"
        print(f"speed: {summary['samples_per_s']:.1f} samples/s on average, {waiting}")


def upload(config: Config, checkpoint: Optional[Path]) -> None:
    """At the end of a run: uploads the checkpoint to the hub if push_to_hub asks for it. Raises
    TrainingError."""
    if config.push_to_hub is None or checkpoint is None:
        return
    from training import push_to_hub

    print(f"uploaded to {push_to_hub(checkpoint, config.push_to_hub)}", flush=True)


def print_verdict(
    config: Config,
    flags: argparse.Namespace,
    output: Path,
    summary: Mapping[str, float],
    instances: ipu.Instances = ipu.ALONE,
) -> None:
    """At the end of a run on the simulator: the verdict, with the time of an update on this host.

    The run is complete and saved, so an exception here is reported but doesn't fail the run.
    """
    if "samples_per_s" not in summary:  # there was nothing left to train
        return
    measured_s = config.global_batch_size / summary.get("packs_per_s", summary["samples_per_s"])
    lacking = what_a_verdict_lacks()
    if lacking is not None:
        print(f"no verdict on this run: it needs {lacking}")
        return
    try:
        from planning.dry_run import verdict_beside

        verdict_beside(config, flags.config, output, measured_host_s=measured_s, instances=instances.count)
    except OSError as error:
        print(f"warning: the run is saved, but its verdict can't be written: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
        print("the run is saved, but its verdict failed: see the error above", file=sys.stderr)


def _join_instances(config: Config, device: ipu.DeviceChoice) -> ipu.Instances:
    """Joins the instances of this run; raises DeviceError if they don't match the configuration."""
    return ipu.join_instances(
        device,
        replication_factor=config.replication_factor,
        ipus_per_replica=config.ipus_per_replica,
        replicated_tensor_sharding=config.replicated_tensor_sharding,
    )


def print_configuration(flags: argparse.Namespace, config: Config, output: Path) -> None:
    """Prints what a search found, then what matters of the configuration; with --print-config all of it."""
    for line in flags.found:
        print(line)
    if not flags.print_config:
        for line in configuration.summary(config, flags.config, configuration.overrides_from(flags)):
            print(line)
        count = len(config.to_dict())
        print(f"  all {count} keys are in {output / 'resolved.yml'}; --print-config prints them")
    else:
        print(f"configuration {flags.config}:")
        for key, value in config.to_dict().items():
            print(f"  {key}: {json.dumps(value)}")
        print("derived:")
        for key, value in configuration.derived(config).items():
            print(f"  {key}: {json.dumps(value)}")
    _warn_of_changed_batch(flags, config)


def _warn_of_changed_batch(flags: argparse.Namespace, config: Config) -> None:
    recipe = configuration.read_recipe(flags.config, flags.configs)
    warning = configuration.changed_batch(config, recipe, flags.config)
    if warning is not None:
        print(warning, flush=True)


def say_how_to_go_on(
    runner: str,
    end: Progress,
    stop: StopRequest,
    arguments: Sequence[str],
    instances: ipu.Instances = ipu.ALONE,
) -> None:
    """After a stop: prints the step reached and the command that resumes. `runner` is a file."""
    from training import resuming_arguments

    print(f"stopped by {stop.signal_name} after step {end.step}; checkpoint {end.checkpoint}")
    go_on = list(arguments) if end.checkpoint is None else resuming_arguments(arguments)
    program = [str(Path(runner)), *go_on]
    if not instances.launched:
        print(f"to resume: {shlex.join([sys.executable, *program])}")
        return
    # The launcher's other flags (hosts, for example) aren't known here.
    name = instances.launcher.split()[0]
    python = [] if name == "torchrun" else [sys.executable]
    print(
        f"to resume, with {name}'s other flags as before: {instances.launcher} {shlex.join(python + program)}"
    )


class Interruption:
    """Handles SIGTERM and Ctrl-C: the first raises KeyboardInterrupt, the second ends the process.

    A handler's exception can strike in a finalizer or in a callback of C++ code, which lose it or turn it
    into another error. So whatever ends the program after the first signal counts as interrupted, and the
    second signal needs no exception. What a process leaves that ends at any moment is swept at the next
    start, and its workers follow it.
    """

    def __init__(self) -> None:
        self.signal_name: Optional[str] = None
        self._process = os.getpid()

    def __call__(self, number: int, _frame: Optional[FrameType]) -> NoReturn:
        self.interrupted(number, again=False)
        raise KeyboardInterrupt(self.signal_name)

    def interrupted(self, number: int, *, again: bool) -> None:
        """Notes a signal; ends the process if it is the second, or if `again`."""
        if os.getpid() != self._process:  # a child that was just forked and has no handlers yet
            os._exit(_INTERRUPTED)
        if again or self.signal_name is not None:
            with contextlib.suppress(Exception):  # the signal may have come while these were written
                sys.stdout.flush()
            os.write(2, f"{_said_of(_name_of(number))}\n".encode())
            os._exit(_INTERRUPTED)
        self.signal_name = _name_of(number)
        sys.unraisablehook = lambda _: None  # of finalizers that were interrupted

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals inside the block; only the main thread can do this."""
        before, hook = {}, sys.unraisablehook
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, self)  # the runners start with SIG_DFL
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)


_INTERRUPTED = 130


def _name_of(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _said_of(signal_name: str) -> str:
    return (
        f"stopped by {signal_name} at once. Prepared data and checkpoints are kept: the same command "
        "continues, with --resume if there is a checkpoint"
    )


def run_as_program(main: Callable[[Optional[List[str]]], Any]) -> int:
    """The exit status: 0 success, 2 user error, 3 does not fit, 130 interrupted before or after training.

    Any other exception is a bug and keeps its traceback.
    """
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # the terminal's encoding may lack a character of an answer or a path
        sys.stdout.reconfigure(errors="backslashreplace")
    ipu.choose_waiting()
    interruption = Interruption()
    with interruption.handled():
        try:
            result = main(None)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or interruption.signal_name is not None:
                name = str(error) if isinstance(error, KeyboardInterrupt) else interruption.signal_name
                print(_said_of(name or "Ctrl-C"), file=sys.stderr)
                return _INTERRUPTED
            message = _message(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 2
        return 0 if getattr(result, "fits", True) else 3


def _message(error: BaseException) -> Optional[str]:
    """What a user reads about an error that isn't a bug; None for a bug."""
    if isinstance(error, BrokenPipeError):
        # As in `| head`. Flushing the rest of the buffer would raise it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "broken pipe: the program reading our output has exited"
    if isinstance(error, (ConfigError, OSError)):
        return str(error)
    if isinstance(error, ValueError):
        from data import DataError
        from model import ConversionError, StagesError
        from training import TrainingError

        ours = isinstance(error, (DataError, ConversionError, StagesError, TrainingError, ipu.DeviceError))
        return str(error) if ours else None
    if not isinstance(error, (MemoryError, RuntimeError)):
        return None
    more = ""
    if isinstance(error, RuntimeError):
        from training import out_of_memory_bytes

        size_bytes = out_of_memory_bytes(error)
        if size_bytes is None:
            return None
        more = f", allocating {size_bytes} bytes"
    return (
        f"out of host memory{more}: use a smaller model or micro_batch_size, or a larger host (--dry-run "
        "allocates no memory for the model)"
    )
