"""Captured programs, kept on disk by a digest of everything that they depend on.

A graph takes seconds to capture, most of them for importing PyTorch. A kept one is read in a tenth of a
second, without PyTorch. The digest covers the configuration's keys except those that `with_options` sets or a
program can't depend on, the source of this application and the simulator, and the versions of Python and
PyTorch. So a kept program is never out of date, and a new key is part of the digest.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, Optional, Tuple

from ipu_simulator.cost.settings import OptimizerSettings, Settings
from ipu_simulator.graph.files import graph_of_text, graph_text

from config import Config, keys_that_alter
from data.files import write_atomically
from data.keys import AnswerKeys, DataKeys, ExampleKeys
from model.tasks import FACTS

if TYPE_CHECKING:
    from ipu_simulator.graph.ir import Graph

    Captured = Tuple[Graph, Settings]

_ROOT = Path(__file__).resolve().parents[1]
_SOURCES = ("config", "data", "ipu", "model", "planning", "training")
# A kept program has up to 1 MB.
_MOST_KEPT = 32
# Keys that with_options sets.
_OPTIONS = frozenset(
    (
        "gradient_accumulation",
        "replication_factor",
        "device_iterations",
        "matmul_proportion",
        "optimizer_state",
        "replicated_tensor_sharding",
    )
)
# Keys that decide numbers and data, not the program's operations, shapes and memory.
_NUMBERS = frozenset(
    (
        "seed",
        "training_steps",
        "learning_rate",
        "lr_schedule",
        "lr_warmup",
        "lr_warmup_power",
        "lr_end",
        "adam_beta1",
        "adam_beta2",
        "optimizer_eps",
        "device",
        "target",
        "simulator_precision",
        "host_threads",
    )
)
# Keys of data that decide shapes: a task of GLUE has a number of classes.
_SHAPES = frozenset(("sequence_length", "mask_tokens", "packed_data", "max_sequences_per_pack", "glue_task"))


def _of_data() -> frozenset[str]:
    names: set[str] = set()
    for group in (DataKeys, ExampleKeys, AnswerKeys):
        names |= set(group.__dataclass_fields__)
    return frozenset(names - _SHAPES)


def key_of(config: Config) -> Tuple[Tuple[str, object], ...]:
    """Equal for configurations whose programs differ only in what `with_options` sets."""
    keys = keys_that_alter("machine", "options", "weights") - _OPTIONS - _NUMBERS - _of_data()
    return tuple((key, getattr(config, key)) for key in sorted(keys))


def with_options(settings: Settings, config: Config) -> Settings:
    """The settings with this configuration's options, for the same graph."""
    optimizer = settings.optimizer
    if optimizer is not None:
        optimizer = replace(
            optimizer, location=config.optimizer_state, sharded=config.replicated_tensor_sharding
        )
    return replace(
        settings,
        gradient_accumulation=config.gradient_accumulation,
        replicas=config.replication_factor,
        device_iterations=config.device_iterations,
        optimizer=optimizer,
        matmul_proportions=config.matmul_proportion,
    )


def kept(config: Config) -> Optional[Captured]:
    """The kept program of `config`, with its options; None if there is none, or if it is damaged."""
    path = _path(config)
    if path is None or not path.is_file():
        return None
    try:
        settings, _, graph = path.read_text(encoding="utf-8").partition("\n")
        captured = graph_of_text(graph), _settings(json.loads(settings))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # captured anew, and replaced
    return captured[0], with_options(captured[1], config)


def keep(config: Config, captured: Captured) -> None:
    """Keeps a program for later runs; the oldest make room. Does nothing for a task of another program.

    A folder that can't be written to is reported on stderr: a verdict doesn't need it.
    """
    path = _path(config)
    if path is None:
        return
    graph, settings = captured
    try:
        # Sets become sorted lists.
        text = f"{json.dumps(asdict(settings), default=sorted)}\n{graph_text(graph)}"
    except TypeError:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8"))
        files = sorted(path.parent.glob("*.json"), key=lambda file: (file.stat().st_mtime, file.name))
        for old in files[:-_MOST_KEPT]:
            old.unlink()
    except FileNotFoundError:
        pass  # another process has removed an old file
    except OSError as error:
        print(f"the program's graph isn't kept for the next dry run: {error}", file=sys.stderr)


def _path(config: Config) -> Optional[Path]:
    if config.task not in FACTS:
        return None
    return Path(config.cache_folder) / "programs" / f"{digest(config)}.json"


def digest(config: Config) -> str:
    """Of everything that the program depends on, in hexadecimal."""
    found = hashlib.sha256()
    for part in (platform.python_version(), metadata.version("torch"), repr(key_of(config))):
        found.update(part.encode("utf-8") + b"\0")
    for path in _sources():
        found.update(str(path.relative_to(_ROOT)).encode("utf-8") + b"\0")
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _sources() -> Iterator[Path]:
    for folder in _SOURCES:
        for suffix in ("py", "json"):
            yield from sorted((_ROOT / folder).rglob(f"*.{suffix}"))


def _settings(values: Dict[str, Any]) -> Settings:
    """The settings of a kept program, with tuples and sets again."""
    sets = {entry.name for entry in fields(Settings) if isinstance(entry.default, frozenset)}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = frozenset(value) if name in sets else tuple(value)
    optimizer = values["optimizer"]
    if optimizer is not None:
        optimizer["state_bytes_per_element"] = tuple(optimizer["state_bytes_per_element"])
        values["optimizer"] = OptimizerSettings(**optimizer)
    return Settings(**values)
