"""Checkpoints: folders written atomically.

    checkpoints/step_00000100/
        model.safetensors, config.json    weights in published names (`transformers` reads a BERT)
        vocab.txt, tokenizer.json, ...    the tokeniser
        optimizer.safetensors             the device's optimiser state and hyperparameters, bit-exact
        state.json                        step, data position, random state, configuration, checksums

A checkpoint is written to a hidden folder, fsynced, then renamed; `state.json` is written last and has the
SHA-256 of every other file. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import data.files

from .errors import CheckpointError, TrainingError


def fsync_folder(folder: Path) -> None:
    """Makes the directory entries of `folder` durable; without it a power failure can lose a synced file."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replaces the content of `path` by `text`, atomically and durably."""
    data.files.write_atomically(path, text.encode("utf-8"))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Locks `folder` for this process; the kernel releases the lock when the process exits, for any reason.

    Raises TrainingError if another process holds the lock or the folder can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"the output folder {folder} can't be used: {error}") from error
    with file:
        try:
            # A record lock instead of flock: forked DataLoader workers don't inherit it, and they outlive a
            # killed parent by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TrainingError(
                f"the output folder {folder} is in use by another run (process {holder}): "
                "wait for it, stop it, or use another --output"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


FORMAT = 1
_NAME = re.compile(r"step_(\d{8,})")
# Keys that state.json must have; resuming needs more (find_start).
_REQUIRED = ("format", "step", "sha256", "config", "rng_state", "progress")
_SPEED = ("calls", "data_wait_s", "device_s")
_KINDS: Dict[str, type] = {
    "step": int,
    "sha256": dict,
    "config": dict,
    "rng_state": list,
    "progress": dict,
    "samples": int,
    "data": str,
    "host_threads": int,
}


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
            part, key = name.split("/", 1)
            parts[part][key] = tensor
        return parts


def step_folders(output: Path) -> List[Path]:
    """The checkpoints in an output folder, oldest first, sorted by number, not by name."""
    folder = output / "checkpoints"
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_number)


def _number(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match.group(1))


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
    keep: int,
) -> Path:
    """Writes `checkpoints/step_<step>` and removes all but the newest `keep` checkpoints.

    `save_model` writes weights, configuration and tokeniser into the folder it is given. An existing
    checkpoint of the same step is replaced. Raises CheckpointError if it can't be written.
    """
    final = checkpoint_folder(output, step)
    parent = final.parent
    temporary = parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(".step_*.tmp"):
            shutil.rmtree(leftover)
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
        (temporary / "state.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            # safetensors creates files that only their owner can read.
            path.chmod((temporary / "state.json").stat().st_mode)
            fsync_file(path)
        fsync_folder(temporary)
        if final.exists():
            replaced = temporary.with_suffix(".replaced.tmp")
            final.rename(replaced)
            temporary.rename(final)
            shutil.rmtree(replaced)
        else:
            temporary.rename(final)
        fsync_folder(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} could not be written: {error}") from error
    for old in step_folders(output)[:-keep]:
        shutil.rmtree(old)
    return final


def _as_tensors(state: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in state.items()}


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and verifies one checkpoint folder. Raises CheckpointError that names the bad file."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint of this program: it has no state.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a JSON {type(state).__name__}, but must hold an object")
    require_keys(folder, state, _REQUIRED)
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {state['format']}; this program reads format {FORMAT}")
    for key, kind in _KINDS.items():
        if key in state and (not isinstance(state[key], kind) or isinstance(state[key], bool)):
            raise CheckpointError(
                f"{path} is damaged: {key} is {json.dumps(state[key])[:60]}, not of type {kind.__name__}"
            )
    if not {"record", "evaluation_due"} <= set(state["progress"]):
        raise CheckpointError(f"{path} is damaged: progress lacks record or evaluation_due")
    speed = state["progress"].get("speed", {})  # earlier versions have none
    if not isinstance(speed, dict) or not all(
        name in _SPEED and isinstance(value, (int, float)) for name, value in speed.items()
    ):
        raise CheckpointError(f"{path} is damaged: the speed in progress is {json.dumps(speed)[:60]}")
    unchecked = {"model.safetensors", "config.json", "optimizer.safetensors"} - set(state["sha256"])
    if unchecked:
        raise CheckpointError(f"{path} has no checksum of {', '.join(sorted(unchecked))}")
    for name, expected in state["sha256"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        found = sha256(file)
        if found != expected:
            raise CheckpointError(
                f"{file} is corrupt: its SHA-256 is {found[:12]}..., but state.json has {expected[:12]}..."
            )
    return Checkpoint(folder, state)


def require_keys(folder: Path, state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises CheckpointError unless a checkpoint's state has all of the keys."""
    missing = sorted(set(keys) - set(state))
    if missing:
        raise CheckpointError(f"{folder / 'state.json'} lacks {', '.join(missing)}")


def newest_checkpoint(output: Path) -> Tuple[Optional[Checkpoint], List[str]]:
    """The newest valid checkpoint of an output folder, and the problem with each newer one."""
    problems: List[str] = []
    for folder in reversed(step_folders(output)):
        try:
            return read_checkpoint(folder), problems
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
