"""Are two runs the same? Names the first step and key, or weight, that differ.

    python -m training.compare RUN_A RUN_B

Compares the records of metrics.jsonl, without speeds, and the weights and optimiser state of each checkpoint
that both runs have, bit for bit. Exit status: 0 the same, 1 different, 2 nothing to compare.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from config import keys_that_alter

from .checkpoints import Checkpoint, checkpoint_folder, read_checkpoint
from .errors import CheckpointError, TrainingError
from .folder import step_folders, step_of
from .metrics_file import Record, read_metrics

_SPEEDS = ("samples_per_s", "data_wait_fraction")
_TENSORS = ("model.safetensors", "optimizer.safetensors")


def compare(one: Path, other: Path) -> Tuple[List[str], List[str], List[str]]:
    """What two output folders have in common, their first differences, and the settings that differ.

    Raises TrainingError if they have no step in common, or a file is damaged.
    """
    records = [_records(run) for run in (one, other)]
    steps = sorted(set(records[0]) & set(records[1]))
    saved = [{step_of(folder) for folder in step_folders(run)} for run in (one, other)]
    checkpoints = sorted(saved[0] & saved[1])
    if not steps and not checkpoints:
        raise TrainingError(f"{one} and {other} have no step in common: nothing to compare")
    differences = []
    for step in steps:
        found = _first_key(records[0][step], records[1][step])
        if found is not None:
            differences.append(f"step {step}: {found}")
            break
    for step in checkpoints:
        found = _first_tensor(*(read_checkpoint(checkpoint_folder(run, step)) for run in (one, other)))
        if found is not None:
            differences.append(f"checkpoint of step {step}: {found}")
            break
    common = [f"{len(steps)} records", f"{len(checkpoints)} checkpoints"]
    return common, differences, list(_settings(one, other, checkpoints))


def _records(run: Path) -> Dict[int, Record]:
    path = run / "metrics.jsonl"
    return {int(record["step"]): record for record in read_metrics(path)} if path.is_file() else {}


def _settings(one: Path, other: Path, checkpoints: Sequence[int]) -> Iterator[str]:
    """Settings that differ and may alter results: a reason, not yet a difference of the runs."""
    if not checkpoints:
        return
    states = [read_checkpoint(checkpoint_folder(run, checkpoints[-1])).state for run in (one, other)]
    then, now = (state["config"] for state in states)
    harmless = keys_that_alter("nothing")
    for key in sorted(set(then) | set(now)):
        if key not in harmless and then.get(key) != now.get(key):
            yield f"configuration: {key} is {then.get(key)!r} and {now.get(key)!r}"
    threads = [state.get("host_threads") for state in states]
    if threads[0] != threads[1]:
        yield f"host threads: {threads[0]} and {threads[1]}, which change the last bits of sums"


def _first_key(one: Record, other: Record) -> Optional[str]:
    for key in [*one, *(key for key in other if key not in one)]:
        if key not in _SPEEDS and one.get(key) != other.get(key):
            return f"{key} is {one.get(key)!r} and {other.get(key)!r}"
    return None


def _first_tensor(one: Checkpoint, other: Checkpoint) -> Optional[str]:
    for name in _TENSORS:
        if one.state["sha256"][name] == other.state["sha256"][name]:
            continue
        try:
            tensors, theirs = (load_file(str(run.folder / name)) for run in (one, other))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{name} can't be read: {error}") from error
        for key in sorted(set(tensors) | set(theirs)):
            if key not in tensors or key not in theirs:
                return f"{name}: only one of them has {key}"
            mine, its = tensors[key], theirs[key]
            if mine.dtype != its.dtype or mine.shape != its.shape:
                return f"{name}: {key} is {mine.dtype} {list(mine.shape)} and {its.dtype} {list(its.shape)}"
            if mine.numpy().tobytes() != its.numpy().tobytes():
                gap = (mine.double() - its.double()).abs().max().item()
                return f"{name}: {key} differs by up to {gap:.3g}"
    return None


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Prints the outcome; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="output folder of a run")
    runs = parser.parse_args(argv).runs
    try:
        common, differences, settings = compare(*runs)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"compared: {', '.join(common)} that both runs have")
    for difference in differences:
        print(f"differs: {difference}")
    if not differences:
        print("the runs are the same")
    for setting in settings:
        print(f"other settings: {setting}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
