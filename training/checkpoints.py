"""Checkpoints: folders written atomically.

    checkpoints/step_00000100/
        model.safetensors, config.json    weights in published names (`transformers` reads a BERT)
        vocab.txt, tokenizer.json, ...    the tokeniser
        optimizer.safetensors             the device's optimiser state and hyperparameters, bit-exact
        state.json                        step, data position, random state, configuration, checksums

A checkpoint is written to a hidden folder, fsynced, then renamed; `state.json` is written last and has the
SHA-256 of every other file and of its content. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data.files import open_plain, sync_folder

from .errors import CheckpointError
from .folder import STEP_NAME, fsync_file, remove, sha256, step_folders, step_of

FORMAT = 2  # format 1 had no checksum of state.json
# The random state of an instance with 16 IPUs is about 10 MB of JSON.
_MOST_STATE_BYTES = 1 << 30
# Of the files in a checkpoint: a name with a slash, a NUL or half a surrogate pair isn't one of ours.
_FILE_NAME = re.compile(r"\w[\w.-]{0,254}", re.ASCII)
# Keys that state.json must have; resuming needs more (find_start).
_REQUIRED = ("format", "step", "sha256", "config", "rng_state", "progress")
_SPEED = ("calls", "data_wait_s", "device_s", "samples")
_KINDS: Dict[str, type] = {
    "step": int,
    "sha256": dict,
    "config": dict,
    "rng_state": list,  # of the first instance
    "other_rng_states": list,  # a list for each other instance
    "progress": dict,
    "samples": int,
    "data": str,
    "host_threads": int,
    "metrics": dict,
}
# PyTorch starts as many threads as it is told, and crashes.
_RANGES = {"step": (0, 10**12), "samples": (0, 10**18), "host_threads": (1, 4096)}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums were verified."""

    folder: Path
    state: Dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def optimizer_state(self) -> Dict[str, Any]:
        """The state for `poptorch.optim.Optimizer.load_state_dict`, without torch's part of it.

        Raises CheckpointError if the file can't be read.
        """
        try:
            tensors = load_file(str(self.folder / "optimizer.safetensors"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.folder / 'optimizer.safetensors'} can't be read: {error}"
            ) from error
        parts: Dict[str, Any] = {"ipu_state": {}, "ipu_param": {}}
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            if part not in parts or not key:
                raise CheckpointError(
                    f"{self.folder / 'optimizer.safetensors'} has a tensor named {name[:80]!r}: it isn't an "
                    "optimiser state of this program"
                )
            parts[part][key] = tensor
        return parts


def checkpoint_folder(output: Path, step: int) -> Path:
    """The folder of this step's checkpoint, which need not exist."""
    return output / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(
    output: Path,
    step: int,
    *,
    save_model: Callable[[Path], None],
    optimizer_state: Dict[str, Any],
    state: Dict[str, Any],
) -> Path:
    """Writes `checkpoints/step_<step>`.

    `save_model` writes weights, configuration and tokeniser into the folder it is given. An existing
    checkpoint of the same step is replaced. Raises CheckpointError if it can't be written.
    """
    final = checkpoint_folder(output, step)
    parent = final.parent
    temporary = parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        save_model(temporary)
        tensors = {
            f"{part}/{name}": tensor.detach().contiguous().clone()
            for part in ("ipu_state", "ipu_param")
            for name, tensor in _as_tensors(optimizer_state.get(part) or {}).items()
        }
        save_file(tensors, str(temporary / "optimizer.safetensors"))
        checksums = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        record = {"format": FORMAT, "step": step, **state, "sha256": checksums}
        record["state_sha256"] = _checksum(record)
        (temporary / "state.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            # safetensors creates files that only their owner can read.
            path.chmod((temporary / "state.json").stat().st_mode)
            fsync_file(path)
        sync_folder(temporary)
        replaced = temporary.with_suffix(".replaced.tmp")
        if os.path.lexists(final):  # exists() is False for a link to nowhere
            final.rename(replaced)
        temporary.rename(final)
        sync_folder(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} could not be written: {error}") from error
    if os.path.lexists(replaced):
        try:
            remove(replaced)
        except OSError as error:
            print(f"warning: the checkpoint that {final} replaces can't be removed: {error}", file=sys.stderr)
    return final


def _as_tensors(state: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in state.items()}


def _checksum(state: Mapping[str, Any]) -> str:
    """The SHA-256 of a state's content, which doesn't depend on the order of its keys or on white space."""
    rest = {key: value for key, value in state.items() if key != "state_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("utf-8")).hexdigest()


def read_checkpoint(folder: Path, files: Optional[Sequence[str]] = None) -> Checkpoint:
    """Reads and verifies one checkpoint folder. Raises CheckpointError that names the bad file.

    `files`: the files to verify, beside state.json (None: all).
    """
    path = folder / "state.json"
    state = _read_state(folder, path)
    damage = _damage(state)
    if damage:
        raise CheckpointError(f"{path} is damaged: {damage}")
    if STEP_NAME.fullmatch(folder.name) and step_of(folder) != state["step"]:
        raise CheckpointError(f"{path} is the state of step {state['step']}, not of its folder's step")
    for name, expected in state["sha256"].items():
        file = folder / name
        if files is not None and name not in files:
            continue
        try:
            found = sha256(file)
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{file} can't be read: {error.strerror}") from error
        if found != expected:
            raise CheckpointError(
                f"{file} is corrupt: its SHA-256 is {found[:12]}..., but state.json has {expected[:12]}..."
            )
    return Checkpoint(folder, state)


def _read_state(folder: Path, path: Path) -> Dict[str, Any]:
    try:
        with open_plain(path) as file:
            content = file.read(_MOST_STATE_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint of this program: it has no state.json") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _MOST_STATE_BYTES:
        raise CheckpointError(f"{path} is damaged: it is larger than {_MOST_STATE_BYTES} bytes")
    try:
        state = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {str(error)[:200]}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a JSON {type(state).__name__}, but must hold an object")
    require_keys(folder, state, _REQUIRED)
    if state["format"] not in (1, FORMAT):
        raise CheckpointError(
            f"{path} has format {json.dumps(state['format'])[:60]}; this program reads formats 1 and {FORMAT}"
        )
    return state


def _damage(state: Mapping[str, Any]) -> Optional[str]:
    """The first thing that is wrong with a state, or None."""
    for key, kind in _KINDS.items():
        if key in state and (not isinstance(state[key], kind) or isinstance(state[key], bool)):
            return f"{key} is {json.dumps(state[key])[:60]}, not of type {kind.__name__}"
    for key, (least, most) in _RANGES.items():
        if key in state and not least <= state[key] <= most:
            return f"{key} is {str(state[key])[:60]}, not between {least} and {most}"
    progress = state["progress"]
    if not {"record", "evaluation_due"} <= set(progress):
        return "progress lacks record or evaluation_due"
    record = progress["record"]
    if not isinstance(record, dict) or not all(
        value is None or isinstance(value, (int, float)) for value in record.values()
    ):
        return f"the record in progress is {json.dumps(record)[:60]}"
    speed = progress.get("speed", {})  # earlier versions have none
    if not isinstance(speed, dict) or not all(
        name in _SPEED and isinstance(value, (int, float)) for name, value in speed.items()
    ):
        return f"the speed in progress is {json.dumps(speed)[:60]}"
    if not all(isinstance(each, list) for each in state.get("other_rng_states", [])):
        return f"other_rng_states is {json.dumps(state['other_rng_states'])[:60]}, not a list of lists"
    metrics = state.get("metrics", {})
    if metrics and [type(metrics.get("bytes")), type(metrics.get("sha256"))] != [int, str]:
        return f"metrics is {json.dumps(metrics)[:60]}"
    for name, expected in state["sha256"].items():
        if not _FILE_NAME.fullmatch(name) or not isinstance(expected, str):
            return f"sha256 has {json.dumps({name: expected})[:90]}"
    unchecked = {"model.safetensors", "config.json", "optimizer.safetensors"} - set(state["sha256"])
    if unchecked:
        return f"it has no checksum of {', '.join(sorted(unchecked))}"
    # Last, since an error about a key says more than that some key was changed.
    if state["format"] >= FORMAT and state.get("state_sha256") != _checksum(state):
        return "its content doesn't match its own checksum, state_sha256"
    return None


def require_keys(folder: Path, state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises CheckpointError unless a checkpoint's state has all of the keys."""
    missing = sorted(set(keys) - set(state))
    if missing:
        raise CheckpointError(f"{folder / 'state.json'} lacks {', '.join(missing)}")


def newest_checkpoint(
    output: Path, files: Optional[Sequence[str]] = None
) -> Tuple[Optional[Checkpoint], List[str]]:
    """The newest valid checkpoint of an output folder, and the problem with each newer one.

    `files`: see `read_checkpoint`.
    """
    problems: List[str] = []
    for folder in reversed(step_folders(output)):
        try:
            return read_checkpoint(folder, files), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def warn_of_bad_checkpoints(problems: Iterable[str]) -> None:
    for problem in problems:
        print(f"warning: skipped a checkpoint: {problem}", file=sys.stderr)


def resolve_weights_folder(path: Path) -> Path:
    """The folder that `--checkpoint` names: a checkpoint, or the newest valid one of an output folder.

    Raises CheckpointError.
    """
    if not path.is_dir():
        raise CheckpointError(f"--checkpoint {path}: no such folder")
    if (path / "config.json").is_file():
        if (path / "state.json").is_file():
            read_checkpoint(path)
        return path
    checkpoint, problems = newest_checkpoint(path)
    warn_of_bad_checkpoints(problems)
    if checkpoint is None:
        details = "; ".join(problems) or "it has neither config.json nor checkpoints/step_*"
        raise CheckpointError(f"--checkpoint {path}: no checkpoint found there: {details}")
    return checkpoint.folder
