"""Where metrics go besides metrics.jsonl: Weights & Biases and TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Protocol

from .errors import TrainingError
from .folder import write_atomically
from .metrics_file import Record

TENSORBOARD_FOLDER = "tensorboard"


class Tracker(Protocol):
    name: str

    def write(self, record: Record) -> None:
        """Adds the metrics of a step."""

    def close(self) -> None:
        """Ends the run there."""


def start_trackers(
    names: Collection[str], output: Path, *, project: str, config: Mapping[str, Any], first_step: int
) -> List[Tracker]:
    """The trackers with these names, "wandb" or "tensorboard". What they have of steps from `first_step` on
    is from a run that is resumed now. Raises TrainingError if one can't start."""
    trackers: List[Tracker] = []
    if "wandb" in names:
        trackers.append(_WandB(output, project, config))
    if "tensorboard" in names:
        trackers.append(_TensorBoard(output, config, first_step))
    return trackers


class _WandB:
    """A W&B run, offline unless WANDB_MODE is set; a resumed run continues the same one. W&B itself prints
    nothing."""

    name = "W&B"

    def __init__(self, output: Path, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainingError(
                f"report_to wandb needs the package wandb ({error}): pip install wandb"
            ) from error

        identity = output / "wandb_id"
        settings: Dict[str, Any] = {"project": project, "dir": str(output), "config": dict(config)}
        settings["mode"] = os.environ.get("WANDB_MODE", "offline")
        if identity.exists():
            settings.update(id=identity.read_text(encoding="utf-8").strip(), resume="allow")
        try:
            self._run = wandb.init(**settings, settings=wandb.Settings(silent=True, console="off"))
        except Exception as error:  # W&B raises many types of exceptions, some from its dependencies
            raise TrainingError(
                f"W&B can't start ({' '.join(str(error).split())[:300]}): run `wandb login`, set "
                "WANDB_MODE=offline, or set report_to to none"
            ) from error
        write_atomically(identity, self._run.id)
        where = f"{output / 'wandb'}, to upload with `wandb sync`"
        if settings["mode"] == "online":
            where = str(self._run.url)
        print(f"W&B: run {self._run.id} of {project}, {settings['mode']}: {where}", flush=True)

    def write(self, record: Record) -> None:
        self._run.log(
            {key: value for key, value in record.items() if key != "step"}, step=int(record["step"])
        )

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    """Event files in the output folder's `tensorboard`."""

    name = "TensorBoard"

    def __init__(self, output: Path, config: Mapping[str, Any], first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                f"report_to tensorboard needs the package tensorboard ({error}): pip install tensorboard"
            ) from error
        folder = output / TENSORBOARD_FOLDER
        try:
            self._writer = SummaryWriter(str(folder), purge_step=first_step or None)
        except OSError as error:
            raise TrainingError(f"TensorBoard can't write to {folder}: {error}") from error
        table = "\n".join(f"| {key} | {value} |" for key, value in config.items())
        self._writer.add_text("configuration", f"| key | value |\n|---|---|\n{table}", first_step)
        print(f"TensorBoard: tensorboard --logdir {folder}", flush=True)

    def write(self, record: Record) -> None:
        step = int(record["step"])
        for key, value in record.items():
            if key != "step" and value is not None:
                # Groups in TensorBoard's page: evaluation beside training.
                group = "evaluation" if key.startswith("eval_") else "training"
                name = key[len("eval_") :] if group == "evaluation" else key
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()
