"""Where a run starts: at the checkpoint that it resumes, at weights that fit it, or at random ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

import data
import model as models
from config import keys_that_alter

from .checkpoints import Checkpoint, newest_checkpoint, step_folders, warn_of_bad_checkpoints
from .errors import CheckpointError, TrainingError
from .loop import Progress, Speed


def checkpoint_to_resume(output: Path, config: Mapping[str, Any], *, resume: bool) -> Optional[Checkpoint]:
    """The newest good checkpoint of `output` if `resume`, else None for a new run.

    `config` is the run's configuration as a flat mapping. Raises TrainingError when a new run would write
    into another's folder, CheckpointError when there is nothing to resume or the configuration differs.
    """
    if not resume:
        refuse_folder_of_a_run(output, "add --resume to go on with it, or give another --output")
        return None
    checkpoint, problems = newest_checkpoint(output)
    warn_of_bad_checkpoints(problems)
    if checkpoint is None:
        raise CheckpointError(
            f"--resume: no good checkpoint in {output / 'checkpoints'}; leave --resume out to start a new run"
        )
    _refuse_another_run(checkpoint, config)
    return checkpoint


def refuse_folder_of_a_run(output: Path, remedy: str = "give another --output") -> None:
    """Raises TrainingError if `output` holds checkpoints."""
    if step_folders(output):
        raise TrainingError(f"the output folder {output} holds the checkpoints of another run: {remedy}")


def _refuse_another_run(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    # A longer or shorter training is the same run, though the schedule changes, which is said aloud.
    may_change = keys_that_alter("nothing", "evaluation", "machine") | {"training_steps"}
    then, now = checkpoint.state["config"], json.loads(json.dumps(dict(config)))
    for key in sorted(set(then) | set(now)):
        before, after = then.get(key), now.get(key)
        if before == after:
            continue
        if key not in may_change:
            raise CheckpointError(
                f"--resume: {key} was {json.dumps(before)} in {checkpoint.folder} and is {json.dumps(after)} "
                "now, but a resumed run must be the same run. To start a new one from these weights, give "
                f"--checkpoint {checkpoint.folder} and another --output"
            )
        if key == "training_steps" and after < checkpoint.step:
            raise CheckpointError(
                f"--resume: training_steps is {after}, but {checkpoint.folder} stands at "
                f"{checkpoint.step} already"
            )
        if key == "training_steps":
            print(
                f"warning: training_steps was {before} and is {after} now: the schedule changes",
                file=sys.stderr,
            )


def progress_of(checkpoint: Optional[Checkpoint]) -> Progress:
    """Where a run starts: at the checkpoint it resumes, or before its first evaluation."""
    if checkpoint is None:
        return Progress(0, {"step": 0}, evaluation_due=True, checkpoint=None)
    saved = checkpoint.state["progress"]
    speed = Speed(**saved.get("speed", {}))  # checkpoints of earlier versions have none
    return Progress(checkpoint.step, saved["record"], saved["evaluation_due"], checkpoint.folder, speed)


def resuming_arguments(arguments: Sequence[str]) -> List[str]:
    """The command line that goes on with the run that `arguments` began."""
    kept: List[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--checkpoint":
            next(words)
        elif word != "--resume" and not word.startswith("--checkpoint="):
            kept.append(word)
    return [*kept, "--resume"]


def check_weights_folder(folder: Path, config: models.ModelConfig) -> None:
    """Before anything slow: does `folder` hold the model that `config` describes, dropouts aside?

    Raises CheckpointError that names the flags which would make them equal, and what
    `model.read_model_config` raises.
    """
    found = models.read_model_config(folder)
    differences = [
        f"{key} is {getattr(found, key)!r} there and {getattr(config, key)!r} here"
        for key in config.__dataclass_fields__
        if not key.endswith("dropout") and getattr(found, key) != getattr(config, key)
    ]
    if differences:
        raise CheckpointError(
            f"the checkpoint {folder} holds another model than the configuration: {'; '.join(differences)}. "
            "Each of these keys is a flag, for example --layer-norm-eps 1e-12 for a BERT of Hugging Face"
        )


def check_vocabulary(folder: Path, tokenizer: data.Tokenizer) -> None:
    """Raises CheckpointError if `folder` has a vocabulary and it isn't the tokenizer's."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return
    theirs = data.load_tokenizer(str(folder))
    if theirs.fingerprint() != tokenizer.fingerprint():
        raise CheckpointError(
            f"the vocabulary of the checkpoint {folder} ({theirs.vocab_size} entries) is not the one that "
            f"the data is made with ({tokenizer.vocab_size} entries): use the checkpoint's, "
            f"--tokenizer {folder}"
        )


def initial_model(
    config: models.ModelConfig, *, head: str, seed: int, folder: Optional[Path]
) -> models.TaskModel:
    """A model of the task `head`: with weights from `folder` (checked before), where the head of a
    fine-tuning task that isn't there is drawn from `seed`, or with all weights drawn from `seed`."""
    if folder is None:
        return models.TASKS[head](config, seed=seed)
    return models.from_pretrained(
        folder,
        head=head,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        seed=seed,
    )
